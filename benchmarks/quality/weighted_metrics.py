"""The decision-linked metrics of a sample table under many weightings at once.

A bootstrap over groups counts each photograph as often as its part was drawn, so a draw is a row of whole
weights, and a metric of 2,000 draws is a few matrix products. With weights of one these are the numbers of
`quantize.metrics`, which a test checks. A draw that has nothing to compute a metric from gives NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.sample_table import SampleTable

Floats = NDArray[np.float64]


class RocCounts:
    """Weighted hits and false alarms at every threshold, the strictest first; equal scores fall together.

    Attributes:
        hits, alarms: float64 [draws, distinct scores].
    """

    def __init__(self, table: SampleTable, weights: Floats) -> None:
        order = np.argsort(-table.score, kind="stable")
        last_of_a_score = np.flatnonzero(np.append(np.diff(table.score[order]) != 0, True))
        bad = table.defective[order]
        self.hits = np.cumsum(weights[:, order] * bad, axis=1)[:, last_of_a_score]
        self.alarms = np.cumsum(weights[:, order] * ~bad, axis=1)[:, last_of_a_score]

    @property
    def positives(self) -> Floats:
        return self.hits[:, -1]

    def average_precision(self) -> Floats:
        """Sum of precision times the step in recall, as in scikit-learn; float64 [draws]."""
        precision = _ratio(self.hits, self.hits + self.alarms)
        steps = np.diff(self.hits, axis=1, prepend=0.0)
        both = (self.positives > 0) & (self.alarms[:, -1] > 0)
        return np.where(both, _ratio((steps * np.nan_to_num(precision)).sum(axis=1), self.positives), np.nan)

    def auroc(self) -> Floats:
        """Area under the ROC by trapezoids; float64 [draws]."""
        widths = np.diff(self.alarms, axis=1, prepend=0.0)
        heights = self.hits - np.diff(self.hits, axis=1, prepend=0.0) / 2
        return _ratio((widths * heights).sum(axis=1), self.positives * self.alarms[:, -1])

    def recall_at(self, alarms: Floats) -> Floats:
        """Recall at the lowest threshold with no more false alarms than `alarms` (float64 [draws])."""
        allowed = np.where(self.alarms <= alarms[:, None], self.hits, 0.0)
        return _ratio(allowed.max(axis=1), self.positives)


def false_alarms(table: SampleTable, weights: Floats) -> Floats:
    """Good photographs that were called defective at the table's own threshold; float64 [draws]."""
    return weights @ (~table.defective & table.verdict).astype(np.float64)


def measure(table: SampleTable, weights: Floats, equal_alarms: Floats | None = None) -> dict[str, Floats]:
    """Every metric of `table` under `weights` (float64 [draws, n]); float64 [draws] each.

    `equal_alarms` is the number of false alarms at which `recall_equal_alarms` is read off the ROC; without
    it that metric is NaN. `positive_iou` is the mean IoU of the defective photographs with a known, non-empty
    mask, whatever their verdict.
    """
    roc = RocCounts(table, weights)
    hits = weights @ (table.defective & table.verdict).astype(np.float64)
    alarms = false_alarms(table, weights)
    misses = roc.positives - hits
    none = np.full(len(weights), np.nan)
    masked = table.masked.astype(np.float64)
    asked = weights @ masked
    miou, mpa = _pixel_metrics(table, weights)
    return {
        "ap": roc.average_precision(),
        "auroc": roc.auroc(),
        "recall_equal_alarms": none if equal_alarms is None else roc.recall_at(equal_alarms),
        "recall": _ratio(hits, roc.positives),
        "f1": _ratio(2 * hits, 2 * hits + misses + alarms),
        "misses": misses,
        "false_alarms": alarms,
        "seg_miou": _ratio(weights @ (masked * table.verdict * table.iou), asked + alarms),
        "seg_recall": _ratio(weights @ (masked * table.verdict * table.covered), asked),
        "positive_iou": _ratio(weights @ (masked * table.iou), asked),
        "miou": miou,
        "mpa": mpa,
    }


def _pixel_metrics(table: SampleTable, weights: Floats) -> tuple[Floats, Floats]:
    """IoU and accuracy over all pixels, mean of defect and background, as `quantize.metrics` counts them."""
    counted = weights * (~table.defective | table.masked)
    hit, predicted = counted @ table.intersection, counted @ table.predicted
    truth, pixels = counted @ table.truth, counted @ table.pixels
    background_hit = pixels - predicted - truth + hit
    ious = _ratio(hit, predicted + truth - hit), _ratio(background_hit, pixels - hit)
    accuracies = _ratio(hit, truth), _ratio(background_hit, pixels - truth)
    return sum(ious) / 2, sum(accuracies) / 2


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
