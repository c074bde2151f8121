"""A small U-Net with two outputs, written as docs/own-network.md says: everything in it has a place on the grid."""

import torch
from torch import nn


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class Up(nn.Module):
    """Enlarges `x` to the size of `skip` and joins the two: a convolution for each, and a sum in place of a cat."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.from_below = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.from_skip = nn.Conv2d(outputs, outputs, 1)
        self.conv = DoubleConv(outputs, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv(self.from_below(self.up(x)) + self.from_skip(skip))


class UNet(nn.Module):
    """(p - 128)/128 as [N, C, H, W] -> (defect [N, 1], mask [N, 1, H, W]), both logits. H and W: multiples of 8."""

    def __init__(self, channels: int, width: int = 8) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down1 = DoubleConv(channels, width)
        self.down2 = DoubleConv(width, 2 * width)
        self.down3 = DoubleConv(2 * width, 4 * width)
        self.bottom = DoubleConv(4 * width, 8 * width)
        self.up3 = Up(8 * width, 4 * width)
        self.up2 = Up(4 * width, 2 * width)
        self.up1 = Up(2 * width, width)
        self.mask = nn.Conv2d(width, 1, 1)
        self.defect = nn.Conv2d(8 * width, 1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.down1(x)
        second = self.down2(self.pool(first))
        third = self.down3(self.pool(second))
        bottom = self.bottom(self.pool(third))
        mask = self.mask(self.up1(self.up2(self.up3(bottom, third), second), first))
        defect = self.defect(bottom.mean((2, 3), keepdim=True)).flatten(1)
        return defect, mask


def build(channels: int) -> nn.Module:
    """What `--model unet:build` calls."""
    return UNet(channels)
