"""Thresholds, chosen once: on the full-precision scores of ``val``, then copied unchanged everywhere.

``export`` never sets them again, so a verdict that differs on a device is a flip and not a recalibration.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Candidates this close to the best F1 count as equally good: less than one sample's worth on a few hundred.
F1_TIE = 0.005
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class ChosenThreshold:
    """The rule that turns a defect logit into a verdict, and what it did on the samples it came from.

    ``confidence`` says how far ``miss_rate`` can be trusted: the exact (Clopper-Pearson) upper bound at
    ``level``. It is only *indicative*, because the threshold was chosen on the very same samples.
    """

    threshold: float
    rule: str
    miss_rate: float
    false_alarm_rate: float
    confidence: dict[str, Any]
    n: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_threshold(defective: ArrayLike, scores: ArrayLike) -> ChosenThreshold:
    """The threshold with the highest F1 on these samples (labels 0/1 [N], logits [N]).

    Any value between two neighbouring scores gives the same verdicts here; the middle is taken. Among
    candidates whose F1 is within ``F1_TIE`` of the best the widest gap wins: scores on a device differ a
    little, and a wide gap is what keeps that from changing a verdict.
    """
    label = np.asarray(defective, dtype=bool)
    score = np.asarray(scores, dtype=np.float64)
    if label.shape != score.shape or label.ndim != 1:
        raise ValueError(f"labels {label.shape} and scores {score.shape} must be two lists of one length")
    if not label.any() or label.all():
        raise ValueError("a threshold needs good and defective samples to stand between")
    levels = np.unique(score)
    candidates = (levels[1:] + levels[:-1]) / 2
    gaps = levels[1:] - levels[:-1]
    if not len(candidates):  # all scores equal: calling everything defective is the best that F1 can do
        candidates, gaps = levels[:1], np.zeros(1)
    f1 = np.array([_f1(label, score >= candidate) for candidate in candidates])
    tied = np.flatnonzero(f1 >= f1.max() - F1_TIE)
    threshold = _in_float32(float(candidates[tied[np.argmax(gaps[tied])]]), score)
    verdict = score >= threshold
    positives, misses = int(label.sum()), int((label & ~verdict).sum())
    return ChosenThreshold(
        threshold=threshold,
        rule="f1",
        miss_rate=misses / positives,
        false_alarm_rate=float((~label & verdict).sum() / (~label).sum()),
        confidence={
            "kind": "indicative",
            "level": CONFIDENCE_LEVEL,
            "miss_rate_upper": miss_rate_upper(misses, positives),
            "positives": positives,
            "misses": misses,
        },
        n=int(label.size),
    )


def miss_rate_upper(misses: int, positives: int, level: float = CONFIDENCE_LEVEL) -> float:
    """One-sided exact (Clopper-Pearson) upper bound of the miss rate after ``misses`` of ``positives``."""
    if not 0 <= misses <= positives or positives < 1:
        raise ValueError(f"{misses} misses of {positives} positives")
    if misses == positives:
        return 1.0
    from scipy.stats import beta

    return float(beta.ppf(level, misses + 1, positives - misses))


def choose_mask_threshold(ious: ArrayLike, candidates: ArrayLike) -> tuple[float, float]:
    """The mask threshold (a logit) with the highest mean IoU, and that IoU.

    ``ious`` is [candidates, positives], made by the runtime's own postprocessing at each candidate. Of
    equally good candidates the one nearest to 0 is taken.
    """
    steps = np.asarray(candidates, dtype=np.float64)
    table = np.asarray(ious, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(steps) or table.size == 0:
        raise ValueError(f"IoUs of shape {table.shape} for {len(steps)} candidates")
    mean = table.mean(axis=1)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    chosen = best[np.argmin(np.abs(steps[best]))]
    return float(steps[chosen]), float(mean[chosen])


def _in_float32(threshold: float, score: NDArray[np.float64]) -> float:
    """The threshold as a float32 with the same verdicts: scores are float32, and so may a comparison be."""
    rounded = float(np.float32(threshold))
    if ((score >= rounded) == (score >= threshold)).all():
        return rounded
    return float(score[score >= threshold].min())


def _f1(label: NDArray[np.bool_], verdict: NDArray[np.bool_]) -> float:
    hits = int((label & verdict).sum())
    return 2 * hits / int(label.sum() + verdict.sum()) if hits else 0.0
