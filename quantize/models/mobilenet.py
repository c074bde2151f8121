"""The shared encoder: MobileNetV2 (Sandler et al., CVPR 2018), truncated at stride 16.

State-dict names are torchvision's (`features.N.conv...`), so its published weights load as they are.
Convolutions pad symmetrically by one; batch norms stay modules while training and are folded at export.
"""

from __future__ import annotations

from torch import Tensor, nn

# Expansion, channels, repeats, stride of each stage of the paper's table 2, up to stride 16.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
# Features that the decoder takes: the last block at stride 2, 4, 8 and 16.
TAPS = (1, 3, 6, 13)
# TensorFlow's for MobileNetV2. With torch's 1e-5 a channel that hardly ever varies on the user's surfaces learns a
# gain of up to 24, and folded into the weights that gain amplifies the rounding of the int8 grid before it.
NORM_EPSILON = 1e-3


def scaled_channels(channels: int, width: float) -> int:
    """Multiple of 4 nearest to `channels * width`, never more than 10 % below it.

    The paper rounds to 8; the published quantized networks of width 0.5 have 12 channels, not 16, in their
    second stage, and our narrow encoder has to fit them.
    """
    scaled = max(8, int(channels * width + 2) // 4 * 4)
    return scaled + 4 if scaled < 0.9 * channels * width else scaled


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=NORM_EPSILON),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [] if expansion == 1 else [conv_norm(inputs, hidden, 1)]
        self.conv = nn.Sequential(
            *expand,
            conv_norm(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, eps=NORM_EPSILON),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Encoder from [N, C, H, W] to features at stride 2, 4, 8 and 16; H and W are multiples of 16.

    Attributes:
        channels: of the four features.
    """

    def __init__(self, width: float, inputs: int) -> None:
        super().__init__()
        current = scaled_channels(32, width)
        layers: list[nn.Module] = [conv_norm(inputs, current, 3, stride=2)]
        outputs = [current]
        for expansion, channels, repeats, stride in STAGES:
            scaled = scaled_channels(channels, width)
            for index in range(repeats):
                layers.append(InvertedResidual(current, scaled, stride if index == 0 else 1, expansion))
                current = scaled
                outputs.append(current)
        self.features = nn.Sequential(*layers)
        self.channels = tuple(outputs[tap] for tap in TAPS)

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS:
                taps.append(x)
        return taps
