"""The metrics of DESIGN.md ("linked to the decision"): definitions, edge cases, invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.metrics import Overlap, decision_metrics, overlap, sample_metrics, seg_metrics

FULL = np.ones((4, 4), bool)


def corner(rows: int, columns: int) -> np.ndarray:
    mask = np.zeros((4, 4), bool)
    mask[:rows, :columns] = True
    return mask


def test_overlap_counts_pixels():
    counts = overlap(corner(2, 4), corner(4, 2))
    assert (counts.intersection, counts.predicted, counts.truth, counts.union) == (4, 8, 8, 12)
    assert counts.iou == pytest.approx(1 / 3)


def test_overlap_refuses_masks_of_different_sizes():
    with pytest.raises(ValueError, match="different shapes"):
        overlap(FULL, np.ones((4, 5), bool))


def test_by_hand():
    # One hit with IoU 1/2 and recall 1/2, one miss, one false alarm, one true negative.
    overlaps = [
        overlap(corner(2, 2), corner(2, 4)),
        overlap(FULL, FULL),
        overlap(FULL, ~FULL),
        overlap(~FULL, ~FULL),
    ]
    metrics = decision_metrics([1, 1, 0, 0], [2.0, -1.0, 1.0, -2.0], 0.0, overlaps)
    assert metrics["n"] == 4 and metrics["positives"] == 2
    assert metrics["sample"]["misses"] == 1 and metrics["sample"]["false_alarms"] == 1
    assert metrics["sample"]["recall"] == metrics["sample"]["precision"] == metrics["sample"]["f1"] == 0.5
    assert metrics["seg"]["seg_miou"] == pytest.approx(0.5 / 3)
    assert metrics["seg"]["seg_recall"] == pytest.approx(0.25)
    assert metrics["seg"]["n"] == 3


def test_a_miss_counts_zero_even_with_a_perfect_mask():
    metrics = seg_metrics([1], [0], [overlap(FULL, FULL)])
    assert metrics["seg_miou"] == 0 and metrics["seg_recall"] == 0 and metrics["n"] == 1


def test_nothing_to_measure_is_nan_and_never_one():
    metrics = seg_metrics([0, 0], [0, 0], [overlap(~FULL, ~FULL)] * 2)
    assert math.isnan(metrics["seg_miou"]) and math.isnan(metrics["seg_recall"]) and metrics["n"] == 0
    sample = sample_metrics([0, 0], [0.0, 1.0], 5.0)
    assert all(math.isnan(sample[key]) for key in ("ap", "auroc", "recall", "precision", "f1"))
    nothing = decision_metrics([], [], 0.0, [])
    assert nothing["n"] == 0 and math.isnan(nothing["sample"]["f1"]) and math.isnan(nothing["seg"]["miou"])


def test_a_positive_without_truth_leaves_the_masks_and_stays_in_classification():
    empty = overlap(FULL, ~FULL)
    metrics = decision_metrics([1, 1, 1], [1.0, 1.0, -1.0], 0.0, [empty, None, overlap(FULL, FULL)])
    assert metrics["seg"]["empty_positives"] == 2 and metrics["seg"]["n"] == 1
    assert metrics["seg"]["seg_miou"] == 0 and metrics["positives"] == 3
    assert metrics["sample"]["recall"] == pytest.approx(2 / 3)


def test_ap_and_auroc_know_the_order_only():
    label, score = [0, 1, 0, 1], np.array([0.1, 0.9, 0.4, 0.3])
    one, other = sample_metrics(label, score, 0.0), sample_metrics(label, score * 7 - 3, 0.0)
    assert (one["ap"], one["auroc"]) == (other["ap"], other["auroc"])
    assert one["auroc"] == pytest.approx(0.75)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        sample_metrics([0, 1], [0.0, math.nan], 0.0)


@st.composite
def samples(draw):
    """A list of (label, score, overlap) on 8 x 8 pixels; a positive always has a defect."""
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        label = draw(st.booleans())
        truth = draw(st.integers(1, 64)) if label else 0
        predicted = draw(st.integers(0, 64))
        least, most = max(0, truth + predicted - 64), min(truth, predicted)
        shared = draw(st.integers(least, most))
        rows.append((label, draw(st.floats(-5, 5)), Overlap(shared, predicted, truth, 64)))
    return rows


def measure(rows):
    label, score, overlaps = (list(column) for column in zip(*rows))
    return decision_metrics(label, score, 0.0, overlaps)


@given(samples(), st.integers(1, 5))
def test_true_negatives_change_neither(rows, count):
    before = measure(rows)["seg"]
    after = measure(rows + [(False, -1.0, Overlap(0, 3, 0, 64))] * count)["seg"]
    for key in ("seg_miou", "seg_recall", "n"):
        assert after[key] == before[key] or (math.isnan(after[key]) and math.isnan(before[key]))


@given(samples())
def test_seg_recall_is_at_most_the_recall(rows):
    metrics = measure(rows)
    if metrics["positives"]:
        assert metrics["seg"]["seg_recall"] <= metrics["sample"]["recall"] + 1e-12


@given(samples())
def test_seg_miou_factors_into_verdicts_and_masks(rows):
    metrics = measure(rows)
    hits = [counts.iou for label, score, counts in rows if label and score >= 0]
    wrong = metrics["sample"]["misses"] + metrics["sample"]["false_alarms"]
    if not hits:
        assert metrics["seg"]["seg_miou"] == 0 or metrics["seg"]["n"] == 0
        return
    factor = len(hits) / (len(hits) + wrong)
    assert metrics["seg"]["seg_miou"] == pytest.approx(factor * sum(hits) / len(hits))


@given(samples())
def test_everything_is_a_share(rows):
    metrics = measure(rows)
    for value in [metrics["sample"][k] for k in ("ap", "auroc", "recall", "precision", "f1")] + [
        metrics["seg"][k] for k in ("seg_miou", "seg_recall", "miou", "mpa")
    ]:
        assert math.isnan(value) or 0 <= value <= 1 + 1e-12
