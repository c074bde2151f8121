"""The inpainting extension: paint over what was found and ask again, until nothing more is found.

From the paper: an inpainting extension module makes the final class activation map. Ours: how it ends. A defect
that hides another one (the second blowhole, the rest of a long crack) is found when the first is gone. It goes on
only while the photograph still scores as defective, a few rounds, and up to a share of the photograph: beyond,
what is painted over is no longer this surface.
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
from quantize.weak.classifier import pool
from quantize.weak.focus import evidence_of
from quantize.weak.photographs import Photographs

MARGIN_SHARE = 1 / 64  # of the shorter side: evidence ends inside of what it was evidence of
INPAINT_RADIUS_PX = 3


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
    maps: NDArray[np.float16],
    cut: float,
    *,
    threshold: float,
    stride: int,
    pooling: str,
    config: ExtensionConfig,
) -> Extended:
    """Extend the evidence ``maps`` (logits N x H x W, not written to) of ``data``, defective photographs.

    Evidence from ``cut`` on is found; ``threshold`` is the verdict's. Where a round finds more, the map takes
    the new evidence.
    """
    maps = maps.copy()
    painted = data.whole.clone()
    found = maps >= cut
    going = np.arange(len(data))
    added = []
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
            new = (pixels[place] >= cut) & ~found[index]
            if scores[place] < threshold or not new.any() or (found[index] | new).mean() > config.area:
                continue
            maps[index][new] = pixels[place][new]
            found[index] |= new
            more.append(index)
        added.append(len(more))
        going = np.array(more, dtype=int)
    return Extended(maps, tuple(added))


def inpaint(tile: Tensor, found: NDArray[np.bool_]) -> Tensor:
    """``tile`` (uint8 C x H x W) with ``found`` (bool H x W) and a margin painted over (Telea 2004)."""
    margin = max(1, round(min(found.shape) * MARGIN_SHARE))
    kernel = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    hole = cv2.dilate(found.astype(np.uint8), kernel)
    image = np.ascontiguousarray(tile.permute(1, 2, 0).numpy())
    filled = cv2.inpaint(image, hole, INPAINT_RADIUS_PX, cv2.INPAINT_TELEA)
    return torch.from_numpy(filled.reshape(image.shape)).permute(2, 0, 1)
