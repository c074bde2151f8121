"""Thresholds: highest F1, widest gap, honest bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.decision import choose_mask_threshold, choose_threshold, miss_rate_upper


def test_separable_scores_are_split_in_the_middle_of_the_gap():
    chosen = choose_threshold([0, 0, 1, 1], [-3.0, -1.0, 2.0, 5.0])
    assert chosen.threshold == 0.5 and chosen.miss_rate == 0 and chosen.false_alarm_rate == 0
    assert chosen.n == 4 and chosen.rule == "f1"


def test_of_equally_good_thresholds_the_one_in_the_widest_gap():
    # Both find F1 = 2/3: at -0.5 two hits and two false alarms, at 5.5 one hit and one miss.
    label, score = [0, 1, 0, 0, 1], [-1.0, 0.0, 1.0, 2.0, 9.0]
    assert _f1(label, score, -0.5) == _f1(label, score, 5.5) == pytest.approx(2 / 3)
    assert choose_threshold(label, score).threshold == 5.5


def _f1(label, score, threshold):
    verdict = np.asarray(score) >= threshold
    hits = (np.asarray(label, bool) & verdict).sum()
    return 2 * hits / (sum(label) + verdict.sum())


@given(st.lists(st.tuples(st.booleans(), st.floats(-20, 20, width=32)), min_size=2, max_size=40))
def test_no_threshold_between_scores_is_clearly_better(rows):
    label, score = [row[0] for row in rows], [row[1] for row in rows]
    if not any(label) or all(label):
        with pytest.raises(ValueError, match="good and defective"):
            choose_threshold(label, score)
        return
    chosen = choose_threshold(label, score)
    assert chosen.threshold == np.float32(chosen.threshold)
    levels = np.unique(score)
    best = max(
        _f1(label, score, t)
        for t in [*((levels[1:] + levels[:-1]) / 2), levels[0]][: max(1, len(levels) - 1)]
    )
    assert _f1(label, score, chosen.threshold) >= best - 0.005 - 1e-12


def test_the_upper_bound_is_the_exact_one():
    # No miss in n: 1 - 0.05 ** (1/n), the "rule of three".
    assert miss_rate_upper(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert miss_rate_upper(5, 5) == 1.0
    assert miss_rate_upper(0, 40) < miss_rate_upper(1, 40) < miss_rate_upper(2, 40)
    with pytest.raises(ValueError, match="7 misses of 5"):
        miss_rate_upper(7, 5)


def test_the_mask_threshold_maximises_the_mean_iou():
    ious = [[0.2, 0.2], [0.5, 0.7], [0.9, 0.1]]
    assert choose_mask_threshold(ious, [-1.0, 0.0, 1.0]) == (0.0, pytest.approx(0.6))
    # A tie goes to the one nearest to even odds.
    assert choose_mask_threshold([[0.5], [0.5], [0.5]], [-2.0, 0.25, 1.0])[0] == 0.25
