"""Synthetic defects on good tiles, because real ones are few: the network sees each real one hundreds of times.

Two kinds. A *transplant* cuts a real defect out of its tile and sets it into another surface, lighter or darker by
as much as it differed from its own (after Ghiasi et al., "Simple copy-paste", 2021). A *texture* blends foreign
surface into a Perlin-noise shape (after DRAEM, Zavrtanik et al., 2021; Perlin, "Improving noise", 2002). Both make
the mask of what they did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Less than this is not seen after the network's first strides, so it must not be called a defect.
SMALLEST_DEFECT_PX = 24
# A shape that fills more of the tile than this is another surface, not a defect.
LARGEST_SHARE = 0.25


@dataclass(frozen=True)
class DefectConfig:
    """``share`` of the good tiles in a batch get a defect; ``transplants`` of those a real one.

    ``masks`` says whether their masks are taught as well as the verdict. By default there are none: on the tile
    photographs they cost masks more than they gave verdicts (docs/training.md).
    """

    share: float = 0.0
    transplants: float = 0.6
    masks: bool = True


class SyntheticDefects:
    """Pastes defects, with donors from one framed set.

    Args:
        tiles: raw pixels of the training set, uint8 T x C x H x W.
        coverage: defective share of its pixels, uint8 T x H x W.
        donors: indices of the tiles with a known, non-empty mask, int64.
    """

    def __init__(self, config: DefectConfig, tiles: Tensor, coverage: Tensor, donors: Tensor) -> None:
        self.config, self.tiles, self.coverage, self.donors = config, tiles, coverage, donors

    def __call__(self, tile: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """A copy of a good tile (uint8 C x H x W) with a defect, and its coverage (uint8 H x W).

        None where the shape that was drawn came out too small, or too large, to be a defect.
        """
        transplant = len(self.donors) > 0 and _uniform(generator) < self.config.transplants
        made = self._transplant(tile, generator) if transplant else self._texture(tile, generator)
        area = int((made[1] >= 128).sum())
        if area < SMALLEST_DEFECT_PX or (not transplant and area > LARGEST_SHARE * made[1].numel()):
            return None
        return made

    def _transplant(self, tile: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        donor = int(self.donors[_below(len(self.donors), generator)])
        there = self.coverage[donor]
        rows, columns = (torch.nonzero((there >= 128).any(dim=1 - axis)).flatten() for axis in (0, 1))
        if not len(rows):
            return tile, torch.zeros_like(there)
        margin = 4
        top, bottom = max(0, int(rows[0]) - margin), min(there.shape[0], int(rows[-1]) + 1 + margin)
        left, right = max(0, int(columns[0]) - margin), min(there.shape[1], int(columns[-1]) + 1 + margin)
        patch = self.tiles[donor, :, top:bottom, left:right].float()
        shape = there[top:bottom, left:right]
        for axis in (-2, -1):
            if _uniform(generator) < 0.5:
                patch, shape = patch.flip(axis), shape.flip(axis)
        height, width = shape.shape
        y = _below(tile.shape[1] - height + 1, generator)
        x = _below(tile.shape[2] - width + 1, generator)
        result, coverage = tile.float(), torch.zeros_like(there)
        place = result[:, y : y + height, x : x + width]
        around = (shape == 0).float()
        surface = (patch * around).sum(dim=(1, 2)) / around.sum().clamp_min(1)
        ground = place.mean(dim=(1, 2))
        gain = 0.7 + 0.6 * _uniform(generator)
        moved = ground[:, None, None] + gain * (patch - surface[:, None, None])
        # The edge of a mask is uncertain by a pixel or two: a soft seam leaves no outline to learn.
        soft = functional.avg_pool2d(shape[None].float() / 255, 5, stride=1, padding=2).clamp(0, 1)
        alpha = torch.maximum(soft, shape[None].float() / 255)
        result[:, y : y + height, x : x + width] = place * (1 - alpha) + moved * alpha
        coverage[y : y + height, x : x + width] = shape
        return result.clamp(0, 255).round().to(torch.uint8), coverage

    def _texture(self, tile: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        height, width = tile.shape[1:]
        cells = 2 ** (2 + _below(3, generator))
        noise = perlin(height, width, cells, generator)
        # Only around one place: Perlin noise by itself would cover the tile with islands.
        rows = torch.linspace(-1, 1, height)[:, None] - (2 * _uniform(generator) - 1)
        columns = torch.linspace(-1, 1, width)[None] - (2 * _uniform(generator) - 1)
        angle = math.pi * _uniform(generator)
        along = rows * math.cos(angle) + columns * math.sin(angle)
        across = columns * math.cos(angle) - rows * math.sin(angle)
        reach = 0.08 + 0.4 * _uniform(generator)
        slim = reach * (0.15 + 0.85 * _uniform(generator))
        window = torch.exp(-((along / reach) ** 2) - (across / slim) ** 2)
        shape = (noise + 0.5) * window > 0.35
        foreign = self.tiles[_below(len(self.tiles), generator)].float().flip(-1)
        foreign = foreign.roll((_below(height, generator), _below(width, generator)), (1, 2))
        lift = (2 * _uniform(generator) - 1) * 60
        blend = 0.3 + 0.6 * _uniform(generator)
        alpha = functional.avg_pool2d(shape[None].float(), 3, stride=1, padding=1) * blend
        result = tile.float() * (1 - alpha) + (foreign + lift) * alpha
        return result.clamp(0, 255).round().to(torch.uint8), shape.to(torch.uint8) * 255


def perlin(height: int, width: int, cells: int, generator: torch.Generator) -> Tensor:
    """Two-dimensional Perlin noise: float32 H x W in about -0.7..0.7, ``cells`` lattice cells along each side."""
    angles = 2 * math.pi * torch.rand(cells + 1, cells + 1, generator=generator)
    gradient = torch.stack([angles.sin(), angles.cos()], dim=-1)
    y = torch.arange(height) * cells / height
    x = torch.arange(width) * cells / width
    row, column = y.long(), x.long()
    v, u = (y - row)[:, None], (x - column)[None]

    def corner(down: int, right: int) -> Tensor:
        slope = gradient[(row + down)[:, None], (column + right)[None]]
        return slope[..., 0] * (v - down) + slope[..., 1] * (u - right)

    fade_v, fade_u = (t**3 * (t * (6 * t - 15) + 10) for t in (v, u))
    upper = torch.lerp(corner(0, 0), corner(0, 1), fade_u)
    lower = torch.lerp(corner(1, 0), corner(1, 1), fade_u)
    return torch.lerp(upper, lower, fade_v)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
