"""What export tried, read back from `gate.json`, and what is said of a fallback."""

from __future__ import annotations

import json
import math

import pytest

from edge.artifact import GATE
from edge.errors import ArtifactError
from targets.tried import Tried, fallback, read_tried

INT8 = Tried("int8", 133, 3, 2, 0.72, ("3 of 133 verdicts flipped, allowed 1", "2 new misses, allowed 0"))
FP16, FP32 = Tried("fp16", 133, 0, 0, 0.954), Tried("fp32", 133, 0, 0, 1.0)
NO_FP16 = Tried("fp16", 133, 2, 0, 0.9, ("2 of 133 verdicts flipped, allowed 1",))


def _candidate(precision, agreement, reasons=()):
    row = {"n": 133, "flips": 3, "new_misses": 2, "mask_agreement_iou": agreement, "reasons": []}
    return {"precision": precision, "row": row, "reasons": list(reasons)}


def test_candidates_are_read_in_order_with_the_devices_objections(tmp_path):
    record = {
        "candidates": [_candidate("int8", 0.72, ["two operations on the CPU"]), _candidate("fp16", None)]
    }
    (tmp_path / GATE).write_text(json.dumps(record))
    first, last = read_tried(tmp_path)
    assert first == Tried("int8", 133, 3, 2, 0.72, ("two operations on the CPU",)) and not first.passed
    assert last.precision == "fp16" and last.passed and math.isnan(last.mask_agreement)


def test_a_run_a_prediction_file_and_another_exporter_tell_of_none(tmp_path):
    (tmp_path / "p.npz").write_bytes(b"")
    assert read_tried(tmp_path) == read_tried(tmp_path / "p.npz") == ()
    (tmp_path / GATE).write_text('{"passed": true}')  # another exporter's
    assert read_tried(tmp_path) == ()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"candidates": [{"precision": "int8"}]}', '{"candidates": 3}']
)
def test_a_record_that_export_did_not_write_is_one_message(tmp_path, content):
    (tmp_path / GATE).write_text(content)
    with pytest.raises(ArtifactError, match=r"gate\.json is not readable"):
        read_tried(tmp_path)


def test_a_fallback_names_what_missed_and_what_ships():
    missed = "int8 missed: 3 of 133 verdicts flipped, allowed 1; 2 new misses, allowed 0"
    assert fallback([INT8, FP16]) == f"{missed}; shipped as fp16"
    assert fallback([INT8, NO_FP16, FP32]) == (
        f"{missed}; fp16 missed: 2 of 133 verdicts flipped, allowed 1; shipped as fp32"
    )


@pytest.mark.parametrize(
    "candidates",
    [
        [],
        [Tried("int8", 133, 0, 0, 0.99)],  # int8 ships
        [FP16],  # nobody asked for int8
        [NO_FP16, FP32],
        [INT8],  # nothing ships
        [INT8, NO_FP16],
        [INT8, Tried("int8", 133, 1, 0, 0.98, (), "minmax")],  # int8 ships, with other ranges
        [Tried("int8", 133, 0, 0, 0.99), INT8, FP16],  # the others were only measured
    ],
)
def test_anything_else_is_no_fallback(candidates):
    assert fallback(candidates) == ""
