"""How good is this epoch? Quick and at the network's own size; thresholds are chosen properly at the end."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from quantize.data.framed import FramedSet
from quantize.decision import choose_threshold
from quantize.errors import QuantizeError
from quantize.metrics import sample_metrics
from quantize.training.augmentation import centered

MASK_LOGITS = (-2.0, -1.0, 0.0, 1.0)
BATCH = 16


@torch.inference_mode()
def validate(fabric: Fabric, model: nn.Module, val: FramedSet) -> dict[str, float]:
    """Metrics of ``model`` (in eval mode) on ``val``.

    ``selection`` is what the best epoch is chosen by: the mean of AP, which asks whether the verdicts can be
    told apart, and Seg_mIoU at the best verdict and mask thresholds, which asks where.
    """
    scores: list[Tensor] = []
    ious: list[Tensor] = []
    for start in range(0, len(val), BATCH):
        part = slice(start, start + BATCH)
        images = centered(val.tiles[part].to(fabric.device)).contiguous(memory_format=torch.channels_last)
        with fabric.autocast():
            defect, mask = model(images)
        scores.append(defect.float().flatten().cpu())
        logits = functional.interpolate(
            mask.float(), size=images.shape[2:], mode="bilinear", align_corners=False
        )[:, 0]
        truth = val.coverage[part].to(fabric.device) >= 128
        ious.append(torch.stack([_iou(logits >= step, truth) for step in MASK_LOGITS], dim=1).cpu())
    tile_scores = torch.cat(scores)
    if not torch.isfinite(tile_scores).all():
        raise QuantizeError(
            "the training diverged: the network answers NaN or infinity on val",
            next_step="train again with another --seed, or with --precision 32-true",
        )
    count = int(val.sample.max()) + 1
    # A part is as bad as its worst tile.
    score = torch.full((count,), -torch.inf).scatter_reduce_(0, val.sample, tile_scores, "amax")
    label = torch.zeros(count).scatter_reduce_(0, val.sample, val.defective.float(), "amax").bool()
    seen = torch.isfinite(score)
    decision = choose_threshold(label[seen].numpy(), score[seen].numpy())
    metrics = sample_metrics(label[seen].numpy(), score[seen].numpy(), decision.threshold)
    # Tile by tile: equal to the definition where a frame is one tile, close to it where it is several.
    verdict = tile_scores >= decision.threshold
    asked = val.mask_known & val.defective & (val.coverage >= 128).flatten(1).any(dim=1)
    counted = (asked | (verdict & ~val.defective)).sum().clamp_min(1)
    table = torch.cat(ious)
    seg_miou = float((table * (asked & verdict)[:, None]).sum(dim=0).max() / counted)
    mask_iou = float((table * asked[:, None]).sum(dim=0).max() / asked.sum().clamp_min(1))
    return {
        "ap": metrics["ap"],
        "auroc": metrics["auroc"],
        "f1": metrics["f1"],
        "seg_miou": seg_miou,
        "mask_iou": mask_iou,
        "selection": (metrics["ap"] + seg_miou) / 2,
    }


def _iou(predicted: Tensor, truth: Tensor) -> Tensor:
    both = (predicted & truth).sum(dim=(1, 2))
    return both / (predicted | truth).sum(dim=(1, 2)).clamp_min(1)
