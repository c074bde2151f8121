"""What the network is trained for: L = BCE(verdict) + BCE(mask) + Dice(mask), with fixed weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class LossConfig:
    """Weights of the parts, and the label smoothing that keeps the defect logit from running away."""

    sample: float = 1.0
    mask_bce: float = 2.0
    mask_dice: float = 1.0
    label_smoothing: float = 0.02


def inspection_loss(
    defect: Tensor, mask: Tensor, defective: Tensor, target: Tensor, mask_known: Tensor, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The whole loss of a batch and its parts.

    Args:
        defect: verdict logits N x 1.
        mask: mask logits N x 1 x h x w, at the network's stride.
        defective: 1.0 or 0.0 per image, N.
        target: defective share of each input pixel, N x 1 x H x W in 0..1.
        mask_known: 1.0 where ``target`` is the truth, 0.0 where it is not labelled, N.
    """
    smooth = defective * (1 - config.label_smoothing) + 0.5 * config.label_smoothing
    sample = functional.binary_cross_entropy_with_logits(defect.float().squeeze(1), smooth)
    # The runtime enlarges the logits and then compares: the mask is judged there, so it is trained there.
    logits = functional.interpolate(mask.float(), size=target.shape[2:], mode="bilinear", align_corners=False)
    bce = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(1, 2, 3))
    bce = _mean_where(bce, mask_known)
    dice = _mean_where(dice_loss(logits, target), mask_known * defective)
    total = config.sample * sample + config.mask_bce * bce + config.mask_dice * dice
    return total, {"sample": sample.detach(), "mask_bce": bce.detach(), "mask_dice": dice.detach()}


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice per image (N) of mask logits against coverage in 0..1; 1 pixel of smoothing."""
    probability = torch.sigmoid(logits)
    both = (probability * target).sum(dim=(1, 2, 3))
    either = probability.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3))
    return 1 - (2 * both + 1) / (either + 1)


def _mean_where(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``values`` over the images that ``weight`` chooses; 0 (with a gradient of 0) if none."""
    return (values * weight).sum() / weight.sum().clamp_min(1.0)
