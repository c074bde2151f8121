"""Balanced batches from a framed set: as many defective tiles as good ones, real and synthetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantize.data.framed import FramedSet
from quantize.training.augmentation import Augmentation, AugmentationConfig, View
from quantize.training.deck import Deck
from quantize.training.defects import DefectConfig, SyntheticDefects
from quantize.training.losses import Truth

STRIDE = 16


@dataclass(frozen=True)
class CropConfig:
    """Training may begin on parts of the tiles, ``side`` of the tile's side wide; it ends on whole ones.

    A part costs less than half of a tile and defects fill more of it. From the share ``until`` of the training on,
    tiles are whole as on the device; 0, the default, is whole tiles from the start: with as much time they gave
    better verdicts on held-out parts of the training data (docs/training.md).
    """

    side: float = 0.625
    until: float = 0.0
    on_defect: float = 0.8


@dataclass(frozen=True)
class Batch:
    """Input float32 N x C x H x W, what to answer, and which tiles of the set they are (int64 N)."""

    images: Tensor
    truth: Truth
    tiles: Tensor


class BalancedBatches:
    """One epoch after another of augmented batches; epoch ``e`` is the same after a resume.

    An epoch shows as many tiles as the set has, ``epoch_tiles`` at least, half of them defective. Defective tiles
    are dealt out evenly; of the good ones those that the network finds hard come first (``Deck``). With several
    processes each draws its own share.
    """

    def __init__(
        self,
        data: FramedSet,
        *,
        batch_size: int,
        epoch_tiles: int = 0,
        augmentation: AugmentationConfig,
        defects: DefectConfig,
        crop: CropConfig,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data, self.batch_size, self.augmentation, self.crop = data, batch_size, augmentation, crop
        self.seed, self.device, self.rank = seed, device, rank
        self.steps = max(1, max(len(data), epoch_tiles) // (batch_size * world))
        self.positives = torch.nonzero(data.defective).flatten()
        self.good = Deck(torch.nonzero(~data.defective).flatten())
        donors = torch.nonzero(data.defective & data.mask_known).flatten()
        self.synthetic = SyntheticDefects(defects, data.tiles, data.coverage, donors)
        self.centers = {int(index): center_weights(data.coverage[index]) for index in donors}

    def epoch(self, index: int, *, whole: bool = True) -> Iterator[Batch]:
        """The batches of epoch ``index`` (from 0), of ``whole`` tiles or of parts of them."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index * 1009 + self.rank)
        augment = Augmentation(self.augmentation, generator)
        half = self.batch_size // 2
        positives = _dealt(self.positives, self.steps * half, generator)
        negatives = self.good.deal(self.steps * (self.batch_size - half), generator)
        for step in range(self.steps):
            chosen = torch.cat(
                [
                    positives[step * half : (step + 1) * half],
                    negatives[step * (self.batch_size - half) : (step + 1) * (self.batch_size - half)],
                ]
            )
            tiles, planes, defective = self._raw(chosen, generator)
            known = self.data.mask_known[chosen]
            pasted = defective & ~self.data.defective[chosen]
            view = None if whole else self._view(planes[:, 0], known | ~defective, generator)
            images, moved = augment(tiles.to(self.device), planes.to(self.device), view)
            if view is not None:
                # A part without the defect is good; what has no mask was not cut (see _view).
                inside = (moved[:, 0] >= 0.5).flatten(1).any(dim=1).cpu()
                defective = defective & (inside | ~known)
            yield Batch(
                images=images.contiguous(memory_format=torch.channels_last),
                truth=Truth(
                    defective=defective.float().to(self.device),
                    target=moved[:, :1],
                    center=moved[:, 1:],
                    mask_known=(known & (~pasted | self.synthetic.config.masks)).float().to(self.device),
                ),
                tiles=chosen,
            )

    def learn(self, tiles: Tensor, defect: Tensor) -> None:
        """Take note of how the network answered (logits N) for tiles that `epoch` gave."""
        good = ~self.data.defective[tiles]
        self.good.learn(tiles[good], torch.sigmoid(defect.detach().float().cpu())[good])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self.good.state()

    def resume(self, state: dict[str, Any]) -> None:
        """Take up an earlier ``state``."""
        self.good.resume(state)

    def _raw(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Tiles uint8, planes (coverage, center) uint8 and labels, some good tiles with a synthetic defect."""
        tiles, coverage = self.data.tiles[chosen], self.data.coverage[chosen]
        defective = self.data.defective[chosen].clone()
        centers = torch.zeros_like(coverage)
        draws = torch.rand(len(chosen), generator=generator)
        for place, index in enumerate(chosen.tolist()):
            if index in self.centers:
                centers[place] = self.centers[index]
            elif not defective[place] and draws[place] < self.synthetic.config.share:
                made = self.synthetic(tiles[place], generator)
                if made is not None:
                    tiles[place], coverage[place] = made
                    centers[place] = center_weights(made[1])
                    defective[place] = True
        return tiles, torch.stack([coverage, centers], dim=1), defective

    def _view(self, coverage: Tensor, cuttable: Tensor, generator: torch.Generator) -> View:
        """A random part of each tile, most often with some of the defect in it.

        A tile whose defect has no mask is seen whole, only smaller: nobody knows which part is defective.
        """
        count, height, width = coverage.shape
        size = tuple(max(STRIDE, round(side * self.crop.side / STRIDE) * STRIDE) for side in (height, width))
        zoom = torch.rand(count, generator=generator) * (1 - self.crop.side) + self.crop.side
        zoom = torch.where(cuttable, zoom, torch.ones(()))
        center = torch.rand(count, 2, generator=generator) * 2 - 1
        wanted = torch.rand(count, generator=generator) < self.crop.on_defect
        for index in range(count):
            pixels = torch.nonzero(coverage[index] >= 128) if wanted[index] else torch.empty(0)
            if len(pixels):
                row, column = pixels[int(torch.randint(len(pixels), (), generator=generator))].tolist()
                there = torch.tensor([2 * (column + 0.5) / width - 1, 2 * (row + 0.5) / height - 1])
                center[index] = there + center[index] * zoom[index] * 0.8
        limit = (1 - zoom)[:, None]
        return View((size[0], size[1]), zoom, torch.maximum(torch.minimum(center, limit), -limit))


def center_weights(coverage: Tensor) -> Tensor:
    """Distance to the edge of the defect over the largest one, squared: uint8 H x W, 255 in the middle.

    Each connected piece has its own largest distance, so that a small one counts like a large one.
    """
    from scipy import ndimage

    inside = coverage.numpy() >= 128
    if not inside.any():
        return torch.zeros_like(coverage)
    # A border of background: a defect that runs out of the frame has its edge there.
    distance = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    pieces, count = ndimage.label(inside)
    largest = np.ones(count + 1)
    largest[1:] = ndimage.maximum(distance, pieces, np.arange(1, count + 1))
    return torch.from_numpy(np.rint((distance / largest[pieces]) ** 2 * 255).astype(np.uint8))


def _dealt(cards: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rounds = -(-count // len(cards))
    order = [cards[torch.randperm(len(cards), generator=generator)] for _ in range(rounds)]
    return torch.cat(order)[:count]
