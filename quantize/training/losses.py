"""What the networks are trained for: the verdict of each tile, and its mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quantize.models.outputs import TrainingOutput


@dataclass(frozen=True)
class LossConfig:
    """Weights of the parts.

    ``label_smoothing`` keeps the defect logit from running away; ``focal`` is the focusing exponent of the
    verdict's loss (Lin et al., 2017), 0 is plain BCE. ``center`` is what a pixel in the middle of a defect counts
    beyond one at its edge, by distance transform (after SegDecNet, Bozic et al., 2021: edges are where the
    person who drew the mask is least sure).
    """

    mask_bce: float = 2.0
    mask_dice: float = 1.0
    label_smoothing: float = 0.02
    focal: float = 0.0
    center: float = 0.0
    first_mask: float = 0.4
    coarse: float = 0.5


@dataclass(frozen=True)
class Truth:
    """What a batch should have been answered.

    Attributes:
        defective: 1.0 or 0.0 per tile, N.
        target: defective share of each input pixel, N x 1 x H x W in 0..1.
        center: distance to the defect's edge over the largest one, squared, N x 1 x H x W in 0..1, 0 outside;
            None where no loss asks for it.
        mask_known: 1.0 where ``target`` is the truth, 0.0 where it is not labelled, N.
    """

    defective: Tensor
    target: Tensor
    center: Tensor | None
    mask_known: Tensor


def task_losses(
    output: TrainingOutput, truth: Truth, config: LossConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses of the tasks ``mask`` and ``sample`` (absent where the verdict is not learned), and their parts.

    The parts are without gradient, for the log.
    """
    weight = torch.ones_like(truth.target)
    if truth.center is not None:
        weight = weight + config.center * truth.center
    if output.focus is not None:
        weight = weight * (1 + _enlarged(output.focus, truth.target))
    bce, dice = _mask_losses(output.mask, truth, weight)
    mask = config.mask_bce * bce + config.mask_dice * dice
    parts = {"mask_bce": bce.detach(), "mask_dice": dice.detach()}
    if output.first_mask is not None:
        first_bce, first_dice = _mask_losses(output.first_mask, truth, weight)
        mask = mask + config.first_mask * (config.mask_bce * first_bce + config.mask_dice * first_dice)
    if output.coarse is not None:
        coarse = _coarse_loss(output.coarse, truth)
        mask = mask + config.coarse * coarse
        parts["coarse"] = coarse.detach()
    losses = {"mask": mask}
    if output.defect is not None:
        losses["sample"] = _sample_loss(output.defect, truth.defective, config)
        parts["sample"] = losses["sample"].detach()
    return losses, parts


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice per image (N) of mask logits against coverage in 0..1; 1 pixel of smoothing."""
    probability = torch.sigmoid(logits)
    both = (probability * target).sum(dim=(1, 2, 3))
    either = probability.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3))
    return 1 - (2 * both + 1) / (either + 1)


def _sample_loss(defect: Tensor, defective: Tensor, config: LossConfig) -> Tensor:
    smooth = defective * (1 - config.label_smoothing) + 0.5 * config.label_smoothing
    bce = functional.binary_cross_entropy_with_logits(defect.float().squeeze(1), smooth, reduction="none")
    if config.focal:
        right = torch.sigmoid(defect.detach().float().squeeze(1) * (2 * defective - 1))
        bce = bce * (1 - right) ** config.focal
    return bce.mean()


def _mask_losses(mask: Tensor, truth: Truth, weight: Tensor) -> tuple[Tensor, Tensor]:
    # The runtime enlarges the logits and then compares: the mask is judged there, so it is trained there.
    logits = _enlarged(mask.float(), truth.target)
    bce = functional.binary_cross_entropy_with_logits(logits, truth.target, weight, reduction="none")
    bce = bce.mean(dim=(1, 2, 3))
    dice = dice_loss(logits, truth.target)
    return _mean_where(bce, truth.mask_known), _mean_where(dice, truth.mask_known * truth.defective)


def _coarse_loss(coarse: Tensor, truth: Truth) -> Tensor:
    target = functional.adaptive_max_pool2d(truth.target, coarse.shape[2:])
    bce = functional.binary_cross_entropy_with_logits(coarse.float(), target, reduction="none")
    return _mean_where(bce.mean(dim=(1, 2, 3)), truth.mask_known)


def _enlarged(logits: Tensor, target: Tensor) -> Tensor:
    return functional.interpolate(logits.float(), size=target.shape[2:], mode="bilinear", align_corners=False)


def _mean_where(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``values`` over the images that ``weight`` chooses; 0 (with a gradient of 0) if none."""
    return (values * weight).sum() / weight.sum().clamp_min(1.0)
