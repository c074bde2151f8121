"""Evidence maps of photographs from several views: as framed, and twice as large, each with its mirror image.

The classifier has seen crops, so it reads an enlarged photograph as well as a whole one, and there its map is
twice as fine. Views of another sampling grid also average out the pattern of the strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edge.preprocess import InputSpec
from edge.progress import progress
from edge.samples import Sample
from quantize.weak.classifier import enlarge, evidence_of, pool
from quantize.weak.photographs import Photographs

CHUNK = 16
SCALES = (1, 2)


@dataclass(frozen=True)
class Activations:
    """Evidence logits float16 N x H x W on the network's input grid, and the image logits float32 N."""

    maps: NDArray[np.float16]
    scores: NDArray[np.float32]


def activate(
    fabric: Fabric, model: nn.Module, samples: Sequence[Sample], spec: InputSpec, stride: int, pooling: str
) -> Activations:
    """Evidence of the photographs of ``samples``, the mean of all views; scores from the plain view."""
    maps, scores = [], []
    for start in progress(range(0, len(samples), CHUNK), "activation maps"):
        part = samples[start : start + CHUNK]
        total = torch.zeros(len(part), spec.height, spec.width)
        for scale in SCALES:
            size = replace(spec, width=spec.width * scale, height=spec.height * scale)
            tiles = Photographs(part, size).whole
            evidence = evidence_of(fabric, model, tiles)
            if scale == 1:
                scores.append(pool(evidence[:, None], pooling).numpy())
            total += on_grid(evidence, stride, spec)
            total += on_grid(evidence_of(fabric, model, tiles.flip(3)), stride, spec, mirrored=True)
        maps.append((total / (2 * len(SCALES))).numpy().astype(np.float16))
    return Activations(np.concatenate(maps), np.concatenate(scores).astype(np.float32))


def on_grid(evidence: Tensor, stride: int, spec: InputSpec, *, mirrored: bool = False) -> Tensor:
    """Evidence N x h x w of any view on the input's grid, N x H x W."""
    pixels = enlarge(evidence[:, None], stride)
    if mirrored:
        pixels = pixels.flip(3)
    if pixels.shape[2:] != (spec.height, spec.width):
        pixels = functional.interpolate(
            pixels, size=(spec.height, spec.width), mode="bilinear", align_corners=False
        )
    return pixels[:, 0]
