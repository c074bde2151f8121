"""Metrics that are linked to the decision: every number asks what the verdict did to the part.

For sample i: label y, verdict v = [score >= threshold], predicted mask M, ground truth G, both in frame
coordinates. P = {y = 1}; D = {y = 1 or v = 1}, that is everything but the true negatives.

- ``Seg_mIoU``   = mean over D of y * v * IoU(M, G): misses and false alarms count 0.
- ``Seg_Recall`` = mean over P of v * |M and G| / |G|.

An empty D or P gives NaN with n = 0, never 1. A positive whose ground truth is empty or unknown leaves the
Seg_ metrics, stays in classification, and is counted as ``empty_positives``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of one sample's predicted mask against its ground truth, in frame coordinates."""

    intersection: int
    predicted: int
    truth: int
    pixels: int

    @property
    def union(self) -> int:
        return self.predicted + self.truth - self.intersection

    @property
    def iou(self) -> float:
        """Intersection over union; NaN where both masks are empty."""
        return _ratio(self.intersection, self.union)


def overlap(predicted: NDArray[Any], truth: NDArray[Any]) -> Overlap:
    """Count the pixels of two masks (bool or uint8 H x W, non-zero is defect) of equal shape."""
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of different shapes: predicted {predicted.shape}, truth {truth.shape}")
    found, wanted = predicted != 0, truth != 0
    return Overlap(
        intersection=int(np.count_nonzero(found & wanted)),
        predicted=int(np.count_nonzero(found)),
        truth=int(np.count_nonzero(wanted)),
        pixels=int(found.size),
    )


def sample_metrics(defective: ArrayLike, scores: ArrayLike, threshold: float) -> dict[str, float]:
    """Classification of whole parts: label 0/1 [N], defect logit [N], verdict = score >= threshold.

    ``ap`` and ``auroc`` need both classes, ``recall`` a positive, ``precision`` an alarm; NaN without.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    label = np.asarray(defective, dtype=bool)
    score = np.asarray(scores, dtype=np.float64)
    if label.shape != score.shape or label.ndim != 1:
        raise ValueError(f"labels {label.shape} and scores {score.shape} must be two lists of one length")
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} of {score.size} scores are not finite")
    verdict = score >= threshold
    hits = int((label & verdict).sum())
    misses = int((label & ~verdict).sum())
    alarms = int((~label & verdict).sum())
    both = bool(label.any() and not label.all())
    return {
        "ap": float(average_precision_score(label, score)) if both else math.nan,
        "auroc": float(roc_auc_score(label, score)) if both else math.nan,
        "recall": _ratio(hits, hits + misses),
        "precision": _ratio(hits, hits + alarms),
        "f1": _ratio(2 * hits, 2 * hits + misses + alarms),
        "misses": misses,
        "false_alarms": alarms,
        "threshold": float(threshold),
    }


def seg_metrics(
    defective: ArrayLike, verdicts: ArrayLike, overlaps: Sequence[Overlap | None]
) -> dict[str, float]:
    """Localisation, linked to the verdict: label 0/1 [N], verdict 0/1 [N], one Overlap per sample.

    ``None`` stands for a sample whose ground truth is unknown. ``n`` is the size of D after the positives
    without ground truth have left. ``miou`` and ``mpa`` are the usual ones for comparison with the
    literature: IoU and accuracy over all pixels of all samples, mean of the classes defect and background,
    blind to the verdict.
    """
    label = np.asarray(defective, dtype=bool)
    verdict = np.asarray(verdicts, dtype=bool)
    if not label.shape == verdict.shape == (len(overlaps),):
        raise ValueError(f"{label.shape} labels, {verdict.shape} verdicts, {len(overlaps)} overlaps")
    ious: list[float] = []
    recalls: list[float] = []
    empty_positives = 0
    for positive, alarm, counts in zip(label, verdict, overlaps):
        if positive:
            if counts is None or counts.truth == 0:
                empty_positives += 1
                continue
            ious.append(counts.iou if alarm else 0.0)
            recalls.append(counts.intersection / counts.truth if alarm else 0.0)
        elif alarm:
            ious.append(0.0)
    known = [
        counts
        for positive, counts in zip(label, overlaps)
        if counts is not None and not (positive and counts.truth == 0)
    ]
    miou, mpa = _pixel_metrics(known)
    return {
        "seg_miou": _mean(ious),
        "seg_recall": _mean(recalls),
        "miou": miou,
        "mpa": mpa,
        "n": len(ious),
        "empty_positives": empty_positives,
    }


def decision_metrics(
    defective: ArrayLike, scores: ArrayLike, threshold: float, overlaps: Sequence[Overlap | None]
) -> dict[str, Any]:
    """Everything ``edgeqc evaluate`` reports: keys ``n``, ``positives``, ``sample`` and ``seg``.

    Values that have nothing to be computed from are NaN (``edge.folders.jsonable`` makes them null).
    """
    label = np.asarray(defective, dtype=bool)
    verdicts = np.asarray(scores, dtype=np.float64) >= threshold
    return {
        "n": int(label.size),
        "positives": int(label.sum()),
        "sample": sample_metrics(label, scores, threshold),
        "seg": seg_metrics(label, verdicts, overlaps),
    }


def _pixel_metrics(overlaps: Sequence[Overlap]) -> tuple[float, float]:
    """mIoU and mean pixel accuracy of the classes defect and background; a class without pixels is NaN."""
    hit = sum(o.intersection for o in overlaps)
    predicted = sum(o.predicted for o in overlaps)
    truth = sum(o.truth for o in overlaps)
    pixels = sum(o.pixels for o in overlaps)
    background_hit = pixels - predicted - truth + hit
    ious = [_ratio(hit, predicted + truth - hit), _ratio(background_hit, pixels - hit)]
    accuracies = [_ratio(hit, truth), _ratio(background_hit, pixels - truth)]
    return _mean(ious), _mean(accuracies)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan
