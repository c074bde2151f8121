"""Which samples a person should look at: flips first, then the largest score changes and the worst masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.predictions import Predictions
from edge.samples import Sample
from quantize.metrics import overlap

NEW_MISS = "new miss"
NEW_FALSE_ALARM = "new false alarm"
CORRECTED = "corrected"


@dataclass(frozen=True)
class Case:
    """One sample of one artifact.

    Attributes:
        index: place in the list of samples.
        kind: a flip's kind, else empty.
        change: the artifact's logit minus full precision's.
        agreement: intersection over union of the two masks; 1 where both are empty.
        called: full precision calls it defective, so its mask counts for the mask agreement.
        why: why it is shown.
    """

    index: int
    kind: str
    change: float
    agreement: float
    called: bool
    why: str = ""


def cases(reference: Predictions, predictions: Predictions, samples: Sequence[Sample]) -> list[Case]:
    """All samples, in order; the two predictions are aligned with `samples`."""
    return [
        Case(
            index,
            _kind(sample.defective, bool(was), bool(now)),
            float(predictions.defect_logits[index]) - float(reference.defect_logits[index]),
            _agreement(reference.masks[index], predictions.masks[index]),
            bool(was),
        )
        for index, (sample, was, now) in enumerate(zip(samples, reference.verdicts, predictions.verdicts))
    ]


def worst(every: Sequence[Case], count: int) -> list[Case]:
    """At most `count` cases: flips, then by turns the largest score change and the worst mask agreement."""
    flips = sorted((case for case in every if case.kind), key=_by_change)
    chosen = [_because(case, "the verdict flipped") for case in flips[:count]]
    steady = [case for case in every if not case.kind]
    by_change = [_because(case, "a large score change") for case in sorted(steady, key=_by_change)]
    by_mask = [
        _because(case, "a low mask agreement")
        for case in sorted((c for c in steady if c.called), key=lambda case: (case.agreement, case.index))
    ]
    # A queue whose turn has nothing to show (no change, full agreement) gives its turn to the other.
    queues = [
        [case for case in by_change if case.change != 0],
        [case for case in by_mask if case.agreement < 1],
    ]
    while len(chosen) < count and any(queues):
        for queue in queues:
            while queue and any(case.index == queue[0].index for case in chosen):
                queue.pop(0)
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def _by_change(case: Case) -> tuple[float, int]:
    return -abs(case.change), case.index


def _because(case: Case, why: str) -> Case:
    return Case(case.index, case.kind, case.change, case.agreement, case.called, why)


def _kind(defective: bool, was: bool, now: bool) -> str:
    if was == now:
        return ""
    if now == defective:
        return CORRECTED
    return NEW_MISS if defective else NEW_FALSE_ALARM


def _agreement(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    counts = overlap(a, b)
    return counts.iou if counts.union else 1.0
