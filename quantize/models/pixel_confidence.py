"""The localization and pixel-confidence network: where roughly, then where exactly, then a second look at each pixel.

After Sensors 2025, 25(15):4548 (no public code; its text was not at hand). From the paper: two stages; the Defect
Localization Module's feature vectors enter the second stage's backbone and its spatial information enters the
loss as dynamic pixel weights; the Pixel Confidence Module corrects the first mask by the probability distribution
of the neighbouring pixels, so that fine gaps inside a defect are not cut out. Ours: everything below that level,
that is layers, windows, the form of the confidence and of the correction, and that one encoder serves both
stages. Encoder, decoder and heads are those of the sample-centric network.

Only operations that all targets run in the same integers are deployed, so a probability is relu6(z + 3) / 6, which
has zero point 0 where a sigmoid has not. Beyond the edge of the image it is 0, by zero padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantize.models.mobilenet import MobileNetV2, conv_norm
from quantize.models.outputs import TrainingOutput
from quantize.models.sample_centric import (
    MASK_PRIOR,
    SAMPLE_HIDDEN,
    SAMPLE_PRIOR,
    SIZES,
    Decoder,
    MaskHead,
    SampleHead,
    initialise,
    separable,
    share_gradient,
)

__all__ = ["SIZES", "Localization", "PixelConfidence", "PixelConfidenceNetwork", "build"]

# Sides of the neighbourhoods in cells of the mask, 2 pixels each. A pixel is its own neighbourhood of side 1.
WINDOWS = (1, 3, 7, 15)
CORRECTION_CHANNELS = 16


class Localization(nn.Module):
    """Defect Localization Module: is there a defect in this cell of the encoder's last features?

    Input [N, C, h, w]; output: feature vectors [N, D, h, w], >= 0. `logit` reads the coarse logits [N, 1, h, w]
    off them, for the loss alone: a deployed network leaves them out.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_norm(inputs, channels, 1), separable(channels))
        self.logit = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        vectors: Tensor = self.features(x)
        return vectors


class PixelConfidence(nn.Module):
    """Pixel Confidence Module: a mask logit, corrected by what the pixels around it say.

    p = relu6(z + 3) / 6; the means of p over `WINDOWS`; and the confidence 1 - 4p(1 - p), which is 0 at p = 1/2
    and 1 at certainty. z' = z + correction(those), with a correction of 0 to begin with. Below -3 and above 3 a
    logit is certain, and certain of the same: where no logit has reached -3 yet, there is nothing to correct.

    On the integer grid: 6p = relu6(3 + z) and 6(1 - p) = relu6(3 - z) are a convolution each, whose clamp is
    fused, and no tensor has an offset. p and its means are one map, because they share their range and thus their
    scale: convolutions of constant weights, along rows and then along columns; an average pool would leave it to
    each runtime whether padding counts. 36p(1 - p) is one product; the factor and the offset that make it a
    confidence are left to the convolution that reads it (where p = 0 beyond the edge the confidence is 1, and the
    product 0: padding agrees).

    Input and output: logits [N, 1, h, w].
    """

    def __init__(self, channels: int = CORRECTION_CHANNELS) -> None:
        super().__init__()
        largest, count = max(WINDOWS), len(WINDOWS)
        self.defective = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6())
        self.sound = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6())
        self.means = nn.Sequential(
            nn.Conv2d(1, count, (1, largest), padding=(0, largest // 2), bias=False),
            nn.Conv2d(count, count, (largest, 1), padding=(largest // 2, 0), groups=count, bias=False),
        )
        self.of_means = nn.Conv2d(count, channels, 3, padding=1)
        self.of_confidence = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.activation = nn.ReLU6()
        self.correction = nn.Conv2d(channels, 1, 1)

    def start_without_correction(self) -> None:
        """Set the constant weights, and the correction to 0, so that the answer is the input."""
        with torch.no_grad():
            for side, slope in ((self.defective[0], 1.0), (self.sound[0], -1.0)):
                side.weight.fill_(slope)
                side.bias.fill_(3.0)
            distance = (torch.arange(max(WINDOWS)) - max(WINDOWS) // 2).abs()
            kernels = torch.stack([(distance <= window // 2) / window for window in WINDOWS])
            for along in self.means:
                along.weight.copy_(kernels.view_as(along.weight))
        for constant in (self.defective, self.sound, self.means):
            constant.requires_grad_(False)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, z: Tensor) -> Tensor:
        defective = self.defective(z)
        uncertainty = defective * self.sound(z)
        hidden = self.activation(self.of_means(self.means(defective)) + self.of_confidence(uncertainty))
        return z + self.correction(hidden)


class PixelConfidenceNetwork(nn.Module):
    """Shared encoder, localization, decoder to stride 4, mask head to stride 2, pixel confidence and sample head.

    The feature vectors of the localization join the bottleneck, not its probability: they are what the paper
    names, the probability is a function of them, and one channel of it would say less. They are projected by a
    1x1 convolution that starts at 0 and added, so that a pretrained encoder's features start undisturbed.

    Args:
        width: MobileNetV2 width multiplier.
        channels: 1 (grey) or 3 (RGB).
        decoder_channels: of every decoder map, and of the localization's feature vectors.
        mask_channels: of the mask head's map at stride 2.
        sample_gradient: share of the sample loss's gradient that enters the encoder.
        join: whether the localization's feature vectors enter the second stage.
        pixel_weight: the mask loss of a pixel counts 1 + pixel_weight * q times, q the localization's probability
            of its cell; 0 turns that off.

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
        join: bool = True,
        pixel_weight: float = 2.0,
    ) -> None:
        super().__init__()
        if not 0 <= sample_gradient <= 1:
            raise ValueError(f"sample_gradient is a share, 0 to 1, got {sample_gradient}")
        if not 0 <= pixel_weight < float("inf"):
            raise ValueError(f"pixel_weight is at least 0, got {pixel_weight}")
        self.sample_gradient, self.pixel_weight = sample_gradient, pixel_weight
        self.encoder = MobileNetV2(width, channels)
        first, *others = self.encoder.channels
        last = others[-1]
        self.localization = Localization(last, decoder_channels)
        self.join = nn.Conv2d(decoder_channels, last, 1) if join else None
        self.decoder = Decoder(others, decoder_channels)
        self.mask = MaskHead(decoder_channels, first, mask_channels)
        self.confidence = PixelConfidence()
        self.sample = SampleHead(last, SAMPLE_HIDDEN)
        priors = {**self.mask.priors(), self.localization.logit: MASK_PRIOR}
        initialise(self, {**priors, self.sample.logit: SAMPLE_PRIOR})
        self.confidence.start_without_correction()
        if self.join is not None:
            nn.init.zeros_(self.join.weight)

    def forward(self, x: Tensor) -> TrainingOutput | tuple[Tensor, Tensor]:
        first, *taps = self.encoder(x)
        encoded = taps[-1]  # what the verdict is made of: see SampleHead on why it does not see the masks
        vectors = self.localization(taps[-1]) if self.training or self.join is not None else None
        if self.join is not None:
            taps = [*taps[:-1], taps[-1] + self.join(vectors)]
        decoded = self.decoder(taps)
        first_mask = self.mask(decoded, first)
        mask = self.confidence(first_mask)
        if not self.training:
            return self.sample(encoded), mask
        coarse = self.localization.logit(vectors)
        # Cross entropy makes the sigmoid the probability here; nothing of it is deployed.
        focus = self.pixel_weight * torch.sigmoid(coarse.detach()) if self.pixel_weight else None
        defect = self.sample(share_gradient(encoded, self.sample_gradient))
        return TrainingOutput(defect, mask, first_mask, coarse, focus)


def build(size: str, channels: int, **switches: Any) -> PixelConfidenceNetwork:
    """The network of one of `SIZES`; the switches are the network's own arguments."""
    return PixelConfidenceNetwork(channels=channels, **{**SIZES[size], **switches})
