"""The sample-centric network: one shared encoder answers good or defective, and where.

After "sample-centric multi-task learning" (arXiv 2510.13226: shared encoder, sample verdict and pixel mask
learned together). From siblings: how much of the sample gradient enters the encoder is a choice (SegDecNet 0,
SuperSimpleNet 1). Ours: only operations that OpenVINO, the Edge TPU and TensorRT all run in int8, and in the
same integers. Hence nearest upsampling (a copy, exact everywhere), a global maximum as a chain of max pools
(an int8 ReduceMax goes wrong in OpenVINO, docs/quantization.md), and in place of a concatenation of the two pooled
vectors, which would force one scale on both, one 1x1 convolution for each and a sum, which is the same linear map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize.models.mobilenet import MobileNetV2, conv_norm
from quantize.models.outputs import TrainingOutput

# Edge TPU and TFLite pool windows stay small; a chain of them is still an exact maximum.
LARGEST_POOL = 8
MULTIPLE = 16


def separable(channels: int) -> nn.Sequential:
    """Depthwise 3x3 and pointwise 1x1, each with batch norm and ReLU6."""
    return nn.Sequential(conv_norm(channels, channels, 3, groups=channels), conv_norm(channels, channels, 1))


def share_gradient(x: Tensor, share: float) -> Tensor:
    """`x` in the forward pass, `share` of its gradient in the backward pass."""
    return x if share == 1 else x * share + x.detach() * (1 - share)


def _pool_chain(height: int, width: int) -> list[tuple[int, int]]:
    """Max-pool windows whose chain reduces height x width to 1 x 1."""
    chain = []
    while height > 1 or width > 1:
        window = tuple(
            next((k for k in range(min(LARGEST_POOL, n), 1, -1) if n % k == 0), n) if n > 1 else 1
            for n in (height, width)
        )
        chain.append((window[0], window[1]))
        height, width = height // window[0], width // window[1]
    return chain


def global_maximum(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 1, 1], as a chain of max pools."""
    for window in _pool_chain(x.shape[2], x.shape[3]):
        x = F.max_pool2d(x, window)
    return x


class Decoder(nn.Module):
    """Features at stride 16, 8 and 4, merged coarse to fine into one at stride 4."""

    def __init__(self, encoder_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        fine, middle, coarse = encoder_channels
        self.lateral = nn.ModuleList(conv_norm(n, channels, 1) for n in (coarse, middle, fine))
        self.merge = nn.ModuleList(separable(channels) for _ in range(3))

    def forward(self, taps: list[Tensor]) -> Tensor:
        x: Tensor | None = None
        for tap, lateral, merge in zip(reversed(taps), self.lateral, self.merge):
            side = lateral(tap)
            x = merge(side if x is None else side + _twice(x))
        assert x is not None
        return x


class MaskHead(nn.Module):
    """Mask logits at stride 2: those of the decoder at stride 4, enlarged, and a correction.

    The correction sees the encoder's first features, where edges still are where they were. Cracks and pores are a
    few pixels wide: at stride 4 the truth itself, averaged and enlarged again, has an IoU of 0.66 on the cracks of
    the tile photographs at 256 pixels, at stride 2 of 0.84. It is narrow, because there are four times as many cells.
    """

    def __init__(self, decoder_channels: int, encoder_channels: int, channels: int) -> None:
        super().__init__()
        self.logit = nn.Conv2d(decoder_channels, 1, 1)
        self.narrow = conv_norm(decoder_channels, channels, 1)
        self.lateral = conv_norm(encoder_channels, channels, 1)
        self.merge = separable(channels)
        self.correction = nn.Conv2d(channels, 1, 1)

    def priors(self) -> dict[nn.Module, float]:
        """For ``initialise``: no correction to begin with."""
        return {self.logit: MASK_PRIOR, self.correction: 0.5}

    def forward(self, decoded: Tensor, first: Tensor) -> Tensor:
        seen = self.lateral(first) + _twice(self.narrow(decoded))
        return _twice(self.logit(decoded)) + self.correction(self.merge(seen))


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class SampleHead(nn.Module):
    """One logit from the mean and the maximum of the encoder's last features: [N, C, H, W] -> [N, 1].

    It does not see the mask. On the photographs that a network learns from, the mask is soon right, and a head that
    pools it, or the decoder's features, learns to trust it: on parts that it has not seen the verdicts got worse with
    every epoch that the masks got better (docs/training.md).

    In training it sees some of the features only, mean and maximum of the same ones (dropout, Srivastava et al., 2014):
    there are a few dozen defective parts to learn from, and 2 C numbers to know each of them by.
    """

    def __init__(self, channels: int, hidden: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.dropout = dropout
        self.mean = nn.Conv2d(channels, hidden, 1)
        self.maximum = nn.Conv2d(channels, hidden, 1, bias=False)
        self.activation = nn.ReLU6()
        self.logit = nn.Conv2d(hidden, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean, maximum = x.mean((2, 3), keepdim=True), global_maximum(x)
        if self.training and self.dropout:
            kept = F.dropout(torch.ones_like(mean), self.dropout)
            mean, maximum = mean * kept, maximum * kept
        seen = self.mean(mean) + self.maximum(maximum)
        return self.logit(self.activation(seen)).flatten(1)


class SampleCentric(nn.Module):
    """Shared encoder, decoder to stride 4, mask head to stride 2, and sample head.

    Args:
        width: MobileNetV2 width multiplier.
        channels: 1 (grey) or 3 (RGB).
        decoder_channels: of every decoder map.
        mask_channels: of the mask head's map at stride 2.
        sample_gradient: share of the sample loss's gradient that enters the encoder.

    Input float [N, C, H, W], (p - 128) / 128, H and W multiples of 16.
    Output: defect logits [N, 1] and mask logits [N, 1, H/2, W/2].
    """

    def __init__(
        self,
        width: float,
        channels: int,
        decoder_channels: int,
        mask_channels: int,
        sample_gradient: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= sample_gradient <= 1:
            raise ValueError(f"sample_gradient is a share, 0 to 1, got {sample_gradient}")
        self.sample_gradient = sample_gradient
        self.encoder = MobileNetV2(width, channels)
        first, *others = self.encoder.channels
        self.decoder = Decoder(others, decoder_channels)
        self.mask = MaskHead(decoder_channels, first, mask_channels)
        self.sample = SampleHead(others[-1], SAMPLE_HIDDEN)
        initialise(self, {**self.mask.priors(), self.sample.logit: SAMPLE_PRIOR})

    def forward(self, x: Tensor) -> TrainingOutput | tuple[Tensor, Tensor]:
        first, *taps = self.encoder(x)
        decoded = self.decoder(taps)
        mask = self.mask(decoded, first)
        if self.training:
            return TrainingOutput(self.sample(share_gradient(taps[-1], self.sample_gradient)), mask)
        return self.sample(taps[-1]), mask


def initialise(network: nn.Module, last: Mapping[nn.Module, float]) -> None:
    """He initialisation of every convolution; `last` gives the output layers and the share that they begin with.

    Defects are rare and the first verdicts should be calm: an output layer that starts near its prior keeps the
    first steps from diverging (Lin et al., "Focal loss", 2017).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layer, prior in last.items():
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))


MASK_PRIOR, SAMPLE_PRIOR = 0.02, 0.5
SAMPLE_HIDDEN = 32
# `base` spends more on the masks: published encoder weights end at width 1.0, and they decide the verdicts.
SIZES: dict[str, dict[str, Any]] = {
    "nano": {"width": 0.5, "decoder_channels": 32, "mask_channels": 8},
    "small": {"width": 1.0, "decoder_channels": 64, "mask_channels": 16},
    "base": {"width": 1.0, "decoder_channels": 128, "mask_channels": 32},
}


def build(size: str, channels: int, sample_gradient: float = 1.0) -> SampleCentric:
    """The network of one of `SIZES`."""
    return SampleCentric(channels=channels, sample_gradient=sample_gradient, **SIZES[size])
