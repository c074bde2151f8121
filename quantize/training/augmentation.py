"""Augmentation of whole batches that keeps image and mask aligned: one resampling moves both.

Works on the device that the batch is on. Brightness, contrast and gamma are one look-up table of 256 entries
per image, so they cost a gather and not three passes; flips, turns and the small affine share one sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AugmentationConfig:
    """How much to vary. Shares are probabilities per image; the rest are the ends of uniform ranges.

    ``quarter_turns`` turns by 90 degrees and needs square inputs and surfaces without a fixed direction.
    """

    flips: bool = True
    quarter_turns: bool = False
    affine_share: float = 0.5
    rotation_deg: float = 6.0
    scale: float = 0.1
    shift: float = 0.06
    tone_share: float = 0.8
    brightness: float = 0.12
    contrast: float = 0.25
    gamma: float = 0.25
    noise_share: float = 0.3
    noise: float = 0.03


class Augmentation:
    """Makes training inputs and targets of raw tiles; random numbers from ``generator`` only."""

    def __init__(self, config: AugmentationConfig, generator: torch.Generator) -> None:
        self.config = config
        self.generator = generator

    def __call__(self, tiles: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Vary a batch.

        Args:
            tiles: raw pixels, uint8 N x C x H x W.
            planes: what has to move with the pixels, uint8 N x P x H x W, 255 is all of it.
        Returns:
            input float32 N x C x H x W in (p - 128)/128 and the planes float32 N x P x H x W in 0..1.
        """
        images = self._toned(tiles)
        channels = images.shape[1]
        # One sampling moves all: its grid is made once, and pixels and planes cannot drift apart.
        moved = functional.grid_sample(
            torch.cat([images, planes.to(images.dtype) / 255], dim=1),
            functional.affine_grid(
                self._placements(tiles),
                [len(tiles), channels + planes.shape[1], *tiles.shape[2:]],
                align_corners=False,
            ),
            mode="bilinear",
            # A mirrored border looks like surface; a constant one would be an edge that no part has.
            padding_mode="reflection",
            align_corners=False,
        )
        images, planes = moved[:, :channels], moved[:, channels:]
        noisy = self._share(len(tiles), self.config.noise_share, tiles.device).bool()
        strength = self._uniform(len(tiles), 0.0, self.config.noise, tiles.device)[noisy]
        grain = torch.randn(images[noisy].shape, generator=self.generator, device=self.generator.device)
        images[noisy] += strength.view(-1, 1, 1, 1) * grain.to(images)
        return images.clamp(-1.0, 127 / 128), planes

    def _toned(self, tiles: Tensor) -> Tensor:
        """Pixels through one random tone curve per image, as (p - 128)/128."""
        config, count, device = self.config, len(tiles), tiles.device
        on = self._share(count, config.tone_share, device)
        gamma = torch.exp(self._uniform(count, -config.gamma, config.gamma, device) * on)
        gain = torch.exp(self._uniform(count, -config.contrast, config.contrast, device) * on)
        lift = self._uniform(count, -config.brightness, config.brightness, device) * on
        level = torch.arange(256, device=device, dtype=torch.float32) / 255
        curve = level[None] ** gamma[:, None]
        # Contrast turns around the image's own mean, so that a dark surface does not run into black.
        pivot = (tiles.float().mean(dim=(1, 2, 3)) / 255) ** gamma
        curve = (curve - pivot[:, None]) * gain[:, None] + pivot[:, None] + lift[:, None]
        curve = (curve * 255 - 128) / 128
        return curve.gather(1, tiles.flatten(1).long()).view(tiles.shape)

    def _placements(self, tiles: Tensor) -> Tensor:
        """One affine map per image, N x 2 x 3: where each output pixel comes from, in -1..1."""
        config, count, device = self.config, len(tiles), tiles.device
        height, width = tiles.shape[2:]
        on = self._share(count, config.affine_share, device)
        spread = math.radians(config.rotation_deg)
        angle = self._uniform(count, -spread, spread, device) * on
        scale = 1 + self._uniform(count, -config.scale, config.scale, device) * on
        if config.quarter_turns and height == width:
            turns = torch.randint(0, 4, (count,), generator=self.generator, device=self.generator.device)
            angle = angle + turns.to(device) * (math.pi / 2)
        mirror_x = mirror_y = torch.ones(count, device=device)
        if config.flips:
            mirror_x = 1 - 2 * self._share(count, 0.5, device)
            mirror_y = 1 - 2 * self._share(count, 0.5, device)
        # Coordinates run from -1 to 1 on both axes, so a rotation of pixels needs the aspect ratio.
        aspect = height / width
        cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
        shift_x = self._uniform(count, -config.shift, config.shift, device) * on
        shift_y = self._uniform(count, -config.shift, config.shift, device) * on
        row_x = torch.stack([cosine * mirror_x, -sine * aspect * mirror_x, shift_x], dim=1)
        row_y = torch.stack([sine / aspect * mirror_y, cosine * mirror_y, shift_y], dim=1)
        return torch.stack([row_x, row_y], dim=1)

    def _uniform(self, count: int, low: float, high: float, device: torch.device) -> Tensor:
        values = torch.rand(count, generator=self.generator, device=self.generator.device)
        return (low + (high - low) * values).to(device)

    def _share(self, count: int, share: float, device: torch.device) -> Tensor:
        """1.0 for about ``share`` of the images, 0.0 for the others."""
        values = torch.rand(count, generator=self.generator, device=self.generator.device)
        return (values < share).float().to(device)


def centered(tiles: Tensor) -> Tensor:
    """Raw pixels uint8 as the network's input: float32 (p - 128)/128."""
    return (tiles.float() - 128) / 128
