"""Which defects are found before and after, counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fabricated import mask, predictions, write_samples
from quantize.evaluation import overlaps
from quantize.metrics import decision_metrics
from targets.report.recall import Defect, by_area, by_type, defects

# Frames of 10 pixels: areas of 1, 2, 4 and 10 of 10, one empty mask, one good sample.
TRUTHS = {
    "a.npy": mask("#..../....."),
    "b.npy": mask("##.../....."),
    "c.npy": mask("####./....."),
    "d.npy": mask("#####/#####"),
    "e.npy": mask("...../....."),
    "g.npy": None,
}
KINDS = {"a.npy": "scratch", "b.npy": "hole", "c.npy": "scratch", "d.npy": "", "e.npy": "hole", "g.npy": ""}
NONE = mask("...../.....")


@pytest.fixture
def found(tmp_path):
    written = write_samples(tmp_path, TRUTHS)
    samples = [replace(sample, defect_type=KINDS[sample.id]) for sample in written]
    # Full precision misses d; the artifact finds it, and misses a, which it marks all the same.
    full = predictions(
        samples, [1, 1, 1, -1, 1, 1],
        [TRUTHS["a.npy"], mask("#..../....."), mask("##.../....#"), TRUTHS["d.npy"], NONE, NONE],
    )  # fmt: skip
    ours = predictions(
        samples, [-1, 1, 1, 1, -1, -1],
        [TRUTHS["a.npy"], mask("##.../....."), mask("#..../....."), mask("#####/....."), NONE, NONE],
    )  # fmt: skip
    return defects(samples, full, ours, overlaps(full, samples), overlaps(ours, samples)), samples, full


def _counts(groups):
    return [(group.name, group.n, group.found_was, group.found_now) for group in groups]


def _recalls(groups):
    return [(group.seg_was, group.seg_now) for group in groups]


def test_good_samples_are_no_defects_and_a_missed_one_marks_nothing(found):
    defective, _, _ = found
    assert [defect.area for defect in defective] == [0.1, 0.2, 0.4, 1.0, None]
    assert [defect.marked_was for defect in defective[:4]] == [1, 0.5, 0.5, 0]
    assert [defect.marked_now for defect in defective[:4]] == [0, 1, 0.25, 0.5]
    assert math.isnan(defective[4].marked_was) and math.isnan(defective[4].marked_now)


def test_by_type(found):
    groups = by_type(found[0])
    assert _counts(groups) == [("hole", 2, 2, 1), ("scratch", 2, 2, 1), ("not stated", 1, 0, 1)]
    # The hole without a mask counts as found, and not in Seg_Recall.
    assert _recalls(groups) == [(0.5, 1), (0.75, 0.125), (0, 0.5)]


def test_by_area(found):
    groups = by_area(found[0])
    assert _counts(groups) == [("10 %", 1, 1, 0), ("20 %", 1, 1, 1), ("40 %", 1, 1, 1), ("100 %", 1, 0, 1)]
    assert _recalls(groups) == [(1, 0), (0.5, 1), (0.5, 0.25), (0, 0.5)]


def test_seg_recall_is_that_of_the_metrics(found):
    defective, samples, full = found
    whole = decision_metrics(
        [sample.defective for sample in samples],
        full.defect_logits,
        full.threshold,
        overlaps(full, samples),
    )
    groups = by_area(defective)
    assert sum(group.seg_was for group in groups) / 4 == whole["seg"]["seg_recall"]
    assert whole["seg"]["empty_positives"] == sum(defect.area is None for defect in defective)


def _defect(area, kind=""):
    return Defect(kind, area, True, True, 1.0, 1.0)


def test_a_data_set_without_types_has_no_groups_of_them():
    assert by_type([_defect(0.1)]) == [] and by_type([]) == []


def test_quarters_are_of_the_defects_and_not_of_the_range():
    areas = [0.0001, 0.0002, 0.0003, 0.0004, 0.0005, 0.0006, 0.012345, 0.9]
    groups = by_area([_defect(area) for area in areas])
    assert [group.n for group in groups] == [2, 2, 2, 2]
    assert [group.name for group in groups] == [
        "0.01 to 0.02 %",
        "0.03 to 0.04 %",
        "0.05 to 0.06 %",
        "1.2 to 90 %",
    ]


def test_defects_of_one_area_stay_together():
    assert [group.n for group in by_area([_defect(0.5)] * 6)] == [6]
    assert [group.n for group in by_area([_defect(0.1)] * 3 + [_defect(0.5)])] == [3, 1]
    assert by_area([_defect(None)]) == [] and by_area([]) == []


def test_a_small_share_is_written_without_powers_of_ten():
    assert by_area([_defect(1 / 12_000_000)])[0].name == "0.0000083 %"
    assert np.isnan(by_type([_defect(None, "hole")])[0].seg_was)
