"""The Defect Focus Classifier: good or defective from a map of local evidence, which is the activation map.

From the paper (Applied Soft Computing 184, 113661): a classifier of image labels with a contrastive module.
Ours: the class activation map is exact by construction (a 1x1 convolution whose map is pooled to the one logit)
and is read at stride 8 or 4, because at stride 16 a blowhole of ten pixels is less than a cell.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from quantize.models.mobilenet import MobileNetV2, conv_norm
from quantize.training.augmentation import centered

EMBEDDING = 32
BATCH = 16
# Taps of the encoder are at stride 2, 4, 8 and 16.
STRIDES = {2: 0, 4: 1, 8: 2, 16: 3}


class Focus(NamedTuple):
    """Evidence logits N x 1 x h x w, and unit vectors N x 32 of what the evidence looks at."""

    evidence: Tensor
    embedding: Tensor


class FocusClassifier(nn.Module):
    """MobileNetV2, its features merged at ``stride``, one logit for each cell.

    Args:
        width: MobileNetV2 width multiplier.
        inputs: channels of the image, 1 or 3.
        stride: of the evidence map: 2, 4, 8 or 16.
        channels: of the merged features.

    Input float N x C x H x W in (p - 128)/128, H and W multiples of 16.
    """

    def __init__(self, width: float, inputs: int, stride: int = 8, channels: int = 64) -> None:
        super().__init__()
        self.encoder = MobileNetV2(width, inputs)
        self.stride, self.finest = stride, STRIDES[stride]
        taps = self.encoder.channels[self.finest :]
        self.lateral = nn.ModuleList(conv_norm(n, channels, 1) for n in taps)
        self.merge = nn.Sequential(
            conv_norm(channels, channels, 3, groups=channels), conv_norm(channels, channels, 1)
        )
        self.evidence = nn.Conv2d(channels, 1, 1)
        self.project = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, EMBEDDING)
        )
        _initialise(self, self.evidence)

    def forward(self, x: Tensor) -> Focus:
        taps = self.encoder(x)[self.finest :]
        merged: Tensor | None = None
        for tap, lateral, tap_stride in zip(taps, self.lateral, list(STRIDES)[self.finest :]):
            side = enlarge(lateral(tap), tap_stride // self.stride)
            merged = side if merged is None else merged + side
        features = self.merge(merged)
        evidence = self.evidence(features)
        # What the verdict rests on, so that the contrast is between defects and not between surfaces.
        weight = evidence.detach().float().flatten(2).softmax(dim=2)
        seen = (features.float().flatten(2) * weight).sum(dim=2)
        return Focus(evidence, functional.normalize(self.project(seen), dim=1))


class PlainClassifier(nn.Module):
    """What the paper's method is compared with: MobileNetV2, global mean, one linear layer (Zhou et al. 2016).

    The linear layer is a 1x1 convolution before the mean, which is the same function and gives the map.
    """

    def __init__(self, width: float, inputs: int) -> None:
        super().__init__()
        self.encoder = MobileNetV2(width, inputs)
        self.evidence = nn.Conv2d(self.encoder.channels[-1], 1, 1)
        _initialise(self, self.evidence)

    def forward(self, x: Tensor) -> Focus:
        features = self.encoder(x)[-1]
        return Focus(self.evidence(features), functional.normalize(features.float().mean(dim=(2, 3)), dim=1))


def enlarge(maps: Tensor, factor: int) -> Tensor:
    """Maps N x C x h x w enlarged by a whole factor, each value staying where it was computed.

    A stride-2 convolution with one pixel of padding samples pixels 0, 2, 4...: cell i of a map at stride s looks
    at pixel s * i, not at the middle of its cell. Half-pixel enlargement would move a map at stride 16 by 7.5
    pixels, which is a whole blowhole.
    """
    if factor == 1:
        return maps
    height, width = ((n - 1) * factor + 1 for n in maps.shape[2:])
    inner = functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=True)
    return functional.pad(inner, (0, factor - 1, 0, factor - 1), mode="replicate")


def _initialise(model: nn.Module, last: nn.Conv2d) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    nn.init.normal_(last.weight, std=0.01)
    assert last.bias is not None
    nn.init.zeros_(last.bias)


def pool(evidence: Tensor, how: str) -> Tensor:
    """Evidence N x 1 x h x w to one logit for each image, N.

    ``mean``; ``top``, the mean of the highest hundredth of the cells (at least 4); ``lse``, log-mean-exp with
    sharpness 4 (Pinheiro and Collobert, CVPR 2015): between the mean and the maximum.
    """
    cells = evidence.float().flatten(1)
    if how == "mean":
        return cells.mean(dim=1)
    if how == "top":
        count = min(cells.shape[1], max(4, cells.shape[1] // 100))
        return cells.topk(count, dim=1).values.mean(dim=1)
    if how == "lse":
        return (torch.logsumexp(cells * 4, dim=1) - math.log(cells.shape[1])) / 4
    raise ValueError(f"unknown pooling {how!r}")


POOLINGS = ("mean", "top", "lse")


def contrastive_loss(embedding: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2) of unit vectors N x D, labels N.

    Images without a partner of their class do not count.
    """
    similarity = embedding.float() @ embedding.float().T / temperature
    itself = torch.eye(len(label), dtype=torch.bool, device=label.device)
    similarity = similarity.masked_fill(itself, -torch.inf)
    log_share = similarity - torch.logsumexp(similarity, dim=1, keepdim=True)
    partner = (label[:, None] == label[None, :]) & ~itself
    count = partner.sum(dim=1)
    mean = -log_share.masked_fill(~partner, 0.0).sum(dim=1) / count.clamp_min(1)
    return mean.sum() / (count > 0).sum().clamp_min(1)


@torch.no_grad()
def evidence_of(fabric: Fabric, model: nn.Module, tiles: Tensor) -> Tensor:
    """Evidence logits float32 N x h x w of raw tiles uint8 N x C x H x W, on the CPU; leaves eval mode on."""
    model.eval()
    parts = []
    for part in tiles.split(BATCH):
        images = centered(part.to(fabric.device)).contiguous(memory_format=torch.channels_last)
        with fabric.autocast():
            parts.append(model(images).evidence[:, 0].float().cpu())
    return torch.cat(parts)
