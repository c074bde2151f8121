"""The baseline: the same encoder, decoder and mask head, and a verdict that is nothing but the pooled mask.

It never sees a sample label in its loss. What the sample-centric network is worth is the difference to this one,
so it is made as strong as it can be: how the mask is pooled is chosen on ``val``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize.models.mobilenet import MobileNetV2
from quantize.models.outputs import TrainingOutput
from quantize.models.sample_centric import SIZES, Decoder, MaskHead, global_maximum, initialise

__all__ = ["POOLINGS", "SIZES", "PixelOnly", "build"]

# `mean`, or the highest mean of a window of so many cells (stride 2): a defect is larger than a speck of noise.
POOLINGS = ("max", "window-2", "window-4", "window-8", "window-16", "mean")


class PixelOnly(nn.Module):
    """Encoder, decoder, mask head; defect logit = the mask logits pooled by `pooling`, one of `POOLINGS`.

    Input and outputs are those of `SampleCentric`.
    """

    window: Tensor

    def __init__(
        self, width: float, channels: int, decoder_channels: int, mask_channels: int, pooling: str
    ) -> None:
        super().__init__()
        self.set_pooling(pooling)
        self.encoder = MobileNetV2(width, channels)
        first, *others = self.encoder.channels
        self.decoder = Decoder(others, decoder_channels)
        self.mask = MaskHead(decoder_channels, first, mask_channels)
        initialise(self, self.mask.priors())

    def set_pooling(self, pooling: str) -> None:
        """Pool by one of `POOLINGS` from now on; nothing that was learned changes."""
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, got {pooling}")
        self.pooling = pooling
        side = _side(pooling)
        # The weights of a mean, as a convolution and not an average pool: the former is on the integer grid.
        self.register_buffer("window", torch.full((1, 1, side, side), side**-2.0), persistent=False)

    def forward(self, x: Tensor) -> TrainingOutput | tuple[Tensor, Tensor]:
        first, *taps = self.encoder(x)
        mask = self.mask(self.decoder(taps), first)
        if self.training:
            return TrainingOutput(None, mask)
        return pool(mask, self.pooling, self.window), mask


def pool(mask: Tensor, pooling: str, window: Tensor | None = None) -> Tensor:
    """One logit of mask logits: [N, 1, h, w] -> [N, 1]. `window` are the weights of the mean, made if not given."""
    if pooling == "mean":
        return mask.mean((2, 3), keepdim=True).flatten(1)
    if pooling != "max":
        side = _side(pooling)
        if window is None:
            window = mask.new_full((1, 1, side, side), side**-2.0)
        mask = F.conv2d(mask, window, stride=side)
    return global_maximum(mask).flatten(1)


def _side(pooling: str) -> int:
    return int(pooling.removeprefix("window-")) if pooling.startswith("window-") else 1


def build(size: str, channels: int, pooling: str = "max") -> PixelOnly:
    """The network of one of `SIZES`."""
    return PixelOnly(channels=channels, pooling=pooling, **SIZES[size])
