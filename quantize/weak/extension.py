"""The inpainting extension: paint over what was found and ask again, until nothing more is found.

From the paper: an inpainting extension module makes the final class activation map. A defect that hides another one
(the second blowhole, the rest of a long crack) is found when the first is gone. Ours: how it ends, and what it is
measured by. Paint itself can look like a defect (it did: painted good photographs scored as high as defective ones), so
the classifier learns on painted good photographs, and a find behind paint must beat what the same paint does to
good photographs. It goes on for a few rounds, and up to a share of the photograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from quantize.weak.activation import on_grid
from quantize.weak.classifier import evidence_of, pool
from quantize.weak.photographs import Photographs

MARGIN_SHARE = 1 / 64  # of the shorter side: evidence ends inside of what it was evidence of
INPAINT_RADIUS_PX = 3
CONTROLS = 64  # good photographs that show what paint alone does
CONTROL_QUANTILE = 0.95
BLOBS, BLOB_SHARE = 3, (0.02, 0.12)  # painted at random for the training: how many at most, their half axes


@dataclass(frozen=True)
class ExtensionConfig:
    """``rounds`` of painting at most, and at most ``area`` of the photograph found in all."""

    rounds: int = 2
    area: float = 0.4


@dataclass(frozen=True)
class Extended:
    """Evidence logits float16 N x H x W with what the rounds added; photographs that each round added to."""

    maps: NDArray[np.float16]
    added: tuple[int, ...]


def extend(
    fabric: Fabric,
    model: nn.Module,
    data: Photographs,
    good: Photographs,
    maps: NDArray[np.float16],
    cut: float,
    *,
    threshold: float,
    stride: int,
    pooling: str,
    config: ExtensionConfig,
) -> Extended:
    """Extend the evidence ``maps`` (logits N x H x W, not written to) of ``data``, defective photographs.

    Evidence from ``cut`` on is found; ``threshold`` is the verdict's. Both are raised to what painted photographs
    of ``good`` reach. Where a round finds more, the map takes the new evidence.
    """
    maps = maps.copy()
    painted = data.whole.clone()
    found = maps >= cut
    going = np.arange(len(data))
    added = []
    threshold, new_cut = _control(fabric, model, good, found, threshold, cut, pooling)
    for _ in range(config.rounds):
        share = found[going].mean(axis=(1, 2))
        going = going[(share > 0) & (share < config.area)]
        if not len(going):
            break
        for index in going:
            painted[index] = inpaint(painted[index], found[index])
        evidence = evidence_of(fabric, model, painted[going])
        scores = pool(evidence[:, None], pooling).numpy()
        pixels = on_grid(evidence, stride, data.spec).numpy()
        more = []
        for place, index in enumerate(going.tolist()):
            new = (pixels[place] >= new_cut) & ~found[index]
            if scores[place] < threshold or not new.any() or (found[index] | new).mean() > config.area:
                continue
            maps[index][new] = pixels[place][new]
            found[index] |= new
            more.append(index)
        added.append(len(more))
        going = np.array(more, dtype=int)
    return Extended(maps, tuple(added))


def _control(
    fabric: Fabric,
    model: nn.Module,
    good: Photographs,
    found: NDArray[np.bool_],
    threshold: float,
    cut: float,
    pooling: str,
) -> tuple[float, float]:
    """``threshold`` and ``cut``, or what good photographs with the holes of ``found`` painted over reach, if more."""
    holes = [hole for hole in found if hole.any()]
    if not holes:
        return threshold, cut
    painted = torch.stack(
        [inpaint(tile, holes[i % len(holes)]) for i, tile in enumerate(good.whole[:CONTROLS])]
    )
    evidence = evidence_of(fabric, model, painted)
    scores = pool(evidence[:, None], pooling).numpy()
    highest = evidence.flatten(1).max(dim=1).values.numpy()
    return (
        max(threshold, float(np.quantile(scores, CONTROL_QUANTILE))),
        max(cut, float(np.quantile(highest, CONTROL_QUANTILE))),
    )


def paint_at_random(tile: Tensor, generator: torch.Generator) -> Tensor:
    """``tile`` (uint8 C x H x W) with a few ellipses painted over: a good photograph that was worked on."""
    height, width = tile.shape[1:]
    hole = np.zeros((height, width), np.uint8)
    for _ in range(int(torch.randint(1, BLOBS + 1, (1,), generator=generator))):
        y, x, a, b, turn = torch.rand(5, generator=generator).tolist()
        low, high = BLOB_SHARE
        axes = tuple(max(1, round((low + (high - low) * r * r) * min(height, width))) for r in (a, b))
        cv2.ellipse(hole, (int(x * width), int(y * height)), axes, 180 * turn, 0, 360, 1, -1)
    return inpaint(tile, hole > 0)


def inpaint(tile: Tensor, found: NDArray[np.bool_]) -> Tensor:
    """``tile`` (uint8 C x H x W) with ``found`` (bool H x W) and a margin painted over (Telea 2004)."""
    margin = max(1, round(min(found.shape) * MARGIN_SHARE))
    kernel = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    hole = cv2.dilate(found.astype(np.uint8), kernel)
    image = np.ascontiguousarray(tile.permute(1, 2, 0).numpy())
    filled = cv2.inpaint(image, hole, INPAINT_RADIUS_PX, cv2.INPAINT_TELEA)
    return torch.from_numpy(filled.reshape(image.shape)).permute(2, 0, 1)
