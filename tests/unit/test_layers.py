"""Layer by layer, without any runtime: what counts as a departure, and how a hidden fault is narrowed down."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import qdq
import tflite_files
from edge.errors import InputError
from edge.samples import Sample
from targets.graph_lint import Finding
from targets.layers import hidden
from targets.layers.comparison import MEAN_FEWEST, Measured, Tally, mark_made_by_taps, ships_a_fault
from targets.layers.layer import Layer, on_grid
from targets.layers.verb import spread
from targets.layers.verdict import text


def _tally(*differences, tolerance=2.0):
    tally = Tally(tolerance)
    values = np.asarray(differences, np.float32)
    tally.add(values, np.zeros_like(values))
    return tally


def test_a_departure_is_more_than_rounding():
    assert not _tally(0, 1, -2).departs
    assert _tally(0, 0, 2.5).departs
    assert _tally(3, -1, tolerance=2).facts() == {"max": 3.0, "mean": 2.0, "share": 0.5}


def test_half_a_step_on_average_is_a_rule_and_no_rounding_error():
    often = [0, 1] * MEAN_FEWEST
    assert _tally(*often).departs
    assert not _tally(*often[: MEAN_FEWEST // 2]).departs  # a handful of values says nothing about a rule
    assert not _tally(*([0] * 3 + [1]) * MEAN_FEWEST).departs


def test_what_is_not_a_number_departs():
    assert _tally(0, float("nan")).max == float("inf")
    assert _tally(float("nan")).departs


def test_differences_add_up_over_tiles():
    tally = Tally(2.0)
    for largest in (1, 4, 2):
        tally.add(np.array([0, largest], np.float32), np.zeros(2, np.float32))
    assert (tally.max, tally.count) == (4.0, 6) and tally.mean == pytest.approx(7 / 6)


def _row(name, errors=(0.0, 0.0), steps=(0.1, 0.1)):
    return Measured(Layer(name, name, "Conv", (), 0.1), steps, tuple(map(_tally, errors)), _tally(0))


def test_the_input_is_compared_exactly_and_steps_have_to_be_equal():
    assert not _row("conv", (1.0, 0.0)).departs
    assert _row("input", (0.0, 1.0)).departs and _row("input", (0.0, 1.0)).off == (False, True)
    assert _row("conv", steps=(0.1, 0.15)).departs and _row("conv", steps=(0.1, 0.15)).off == (False, False)
    assert replace(_row("conv", (0.0, 3.0)), fed=(False, True)).off == (False, True)
    assert replace(_row("conv", (0.0, 3.0)), fed=(True, False)).off == (
        False,
        False,
    )  # its inputs were rounded
    unquantized = Layer("raw", "raw", "Concat", (), 0.1, quantized=False)
    assert not Measured(unquantized, (0.1, 0.15), (_tally(0), _tally(0)), _tally(0)).departs


@pytest.mark.parametrize(
    ("artifacts", "steps", "only_tapped"),
    [
        (["one"], None, True),  # the taps move it far, and the shipped programs agree
        (["other"], None, False),  # not moved: what its tapped twin does wrongly the shipped one does as well
        (["one", "other"], None, False),
        (["one"], [0.1, 0.2], False),  # a file's step is no tap's doing
    ],
)
def test_a_departure_that_only_a_tap_makes(artifacts, steps, only_tapped):
    entry = {"artifacts": artifacts, "steps": steps, "only_tapped": False}
    mark_made_by_taps([entry], {"one"})
    assert entry["only_tapped"] == only_tapped


@pytest.mark.parametrize(
    ("shift", "gap", "ships"),
    [((0, 40), (0, 40), True), ((0, 14), (0, 4), False), ((0, 4), (0, 40), False), ((40, 0), (0, 40), False)],
)
def test_a_program_ships_a_fault_when_it_is_far_from_its_twin_and_from_the_other(shift, gap, ships):
    by_output = [dict(zip(("defect", "mask"), distances)) for distances in (shift, gap, (12, 12))]
    assert ships_a_fault(*by_output) == ships


def test_values_beside_the_grid_go_to_its_nearest_point():
    values = np.array([-200, -1.4, 0.6, 127.2, 300], np.float32)
    assert on_grid(values, 0).tolist() == [-128, -1, 1, 127, 127]
    assert on_grid(values, -128).tolist() == [-128, -128, -127, -1, 127]


def test_what_a_q_dq_graph_s_layers_are(tmp_path):
    onnx = pytest.importorskip("onnx")
    from targets.layers.onnx_taps import OnnxFile

    def read(model):
        onnx.save(model, tmp_path / "model.onnx")
        return {layer.name: layer for layer in OnnxFile(tmp_path / "model.onnx").layers}

    layers = read(qdq.unquantized())
    assert list(layers) == [
        "input",
        "features",
        "others",
        "mean",
        "peak",
        "joined",
        "logit/flat",
        "defect",
        "mask",
    ]
    assert layers["features"] == Layer(
        "features", "module/features", "Conv", ("input",), pytest.approx(6 / 127)
    )
    assert layers["joined"].inputs == ("mean", "peak") and layers["joined"].quantized
    assert not layers["peak"].quantized and layers["peak"].step == layers["features"].step
    assert layers["input"].step == 1 / 128

    graph = qdq.Graph()  # a clamp with a quantize before it is an operation of its own
    raw = graph.quantize(graph.convolution(graph.pixels, "conv", (8, 1, 3, 3)))
    clamped = graph.quantize(graph.relu6(raw, "clamp"))
    graph.mask(clamped)
    graph.score(clamped)
    layers = read(graph.model())
    assert layers["clamp"].operation == "Clip" and layers["clamp"].inputs == ("conv",)


def test_files_in_which_nothing_can_be_tapped_are_refused(tmp_path):
    pytest.importorskip("onnx")
    from targets.layers.onnx_taps import OnnxFile
    from targets.layers.tflite_taps import TfliteFile

    for name, kind in (("model.onnx", OnnxFile), ("model.tflite", TfliteFile)):
        (tmp_path / name).write_bytes(b"not a network")
        with pytest.raises(InputError, match="nothing can be tapped"):
            kind(tmp_path / name)


def test_a_file_of_the_edge_tpu_compiler_shows_nothing_inside(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from targets.layers.tflite_taps import TfliteFile

    made = tflite_files.TfliteFile()
    made.operation("edgetpu-custom-op", [made.source(1, 8, 8, 1)], made.tensor(1, 8, 8, 1))
    (tmp_path / "model.tflite").write_bytes(made.bytes())
    with pytest.raises(InputError) as caught:
        TfliteFile(tmp_path / "model.tflite")
    assert "compiler" in str(caught.value)


def test_a_float_graph_has_no_steps_to_count_in(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from targets.layers.onnx_taps import OnnxFile

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "float", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(InputError) as caught:
        OnnxFile(tmp_path / "model.onnx")
    assert "without QuantizeLinear" in str(caught.value)


# Tap by tap: a runtime in which `b` and `c` run as one, and wrongly

CHAIN = [
    Layer("input", "input", "input", (), 1.0),
    Layer("a", "a", "Conv", ("input",), 1.0),
    Layer("side", "side", "Conv", ("input",), 1.0),
    Layer("b", "b", "ReduceMax", ("a",), 1.0),
    Layer("c", "c", "Concat", ("b", "side"), 1.0),
    Layer("d", "d", "Conv", ("c",), 1.0),
    Layer("mask", "mask", "Conv", ("a",), 1.0),
    Layer("defect", "defect", "Conv", ("d",), 1.0),
]
WRONG_BY = 40.0


def _search(monkeypatch, *, splits, wrong=("c", "d", "defect")):
    """Search in a runtime whose tensors `wrong` are off unless one of `splits` is tapped."""

    def values(taps):
        fault = 0.0 if set(taps) & set(splits) else WRONG_BY
        shown = {"mask", "defect", *taps}
        return {
            name: np.full((1, 4), fault * (name in wrong), np.float32)
            for name in (layer.name for layer in CHAIN)
            if name in shown
        }

    @contextmanager
    def program(_side, _layers, _steps, taps=()):
        yield SimpleNamespace(run=lambda _tile: values([tap.name for tap in taps]))

    monkeypatch.setattr(hidden, "program", program)
    everything = [layer.name for layer in CHAIN]
    plain, tapped = ([values(taps)] for taps in ((), everything))
    limits = {"mask": 8.0, "defect": 8.0}
    drift = dict.fromkeys(everything, 0.5)
    return hidden.search(None, CHAIN, {}, [np.zeros((1, 1, 1), np.uint8)], (plain, tapped), limits, drift)


def test_a_fusion_is_found_by_the_tap_that_splits_it(monkeypatch):
    found = _search(monkeypatch, splits=("b",))
    assert found["hidden_by"] == ["b"] and found["seen_at"] == "c"
    assert [one["name"] for one in found["suspects"]] == ["b", "c"]


def test_a_fusion_that_every_tap_near_it_splits_is_found_at_the_output(monkeypatch):
    found = _search(monkeypatch, splits=("b", "c", "d"))
    assert found["hidden_by"] == ["b", "c", "d"] and found["seen_at"] == "defect"
    assert [one["name"] for one in found["suspects"]] == ["b", "c", "d", "defect"]


def test_what_a_right_tensor_is_computed_from_is_no_suspect(monkeypatch):
    found = _search(monkeypatch, splits=("a",), wrong=("d", "defect"))
    # `c` is right while the fault is there, so are `b` and `a` before it: only the tap at `a` hides it.
    assert found["hidden_by"] == ["a"]
    assert [one["name"] for one in found["suspects"]] == ["d"]


def test_ancestors():
    before = hidden.ancestors(CHAIN)
    assert before["input"] == set() and before["c"] == {"input", "a", "side", "b"}


# What is known already


def test_findings_go_to_the_operations_of_the_artifact_at_fault(tmp_path, monkeypatch):
    """By name, whatever a file calls it: the network's outputs go by their own, and modules stand before others."""
    onnx = pytest.importorskip("onnx")
    from targets.layers import known
    from targets.layers.onnx_taps import OnnxFile

    onnx.save(qdq.reduce_max(), tmp_path / "model.onnx")
    file = OnnxFile(tmp_path / "model.onnx")

    def findings(_model, target):
        return [Finding(f"module/{name}", target, "", "") for name in ("peak", "mask_logits")]

    monkeypatch.setattr(known, "onnx_findings", findings)
    sides = [
        SimpleNamespace(name=name, file=read, artifact=SimpleNamespace(target=target))
        for name, read, target in (
            ("one", SimpleNamespace(layers=()), "openvino"),
            ("other", file, "onnx"),
            ("twin", file, "onnx"),
        )
    ]
    result = {
        "departures": [
            {"name": "peak", "artifacts": ["other", "twin"]},
            {"name": "mask", "artifacts": ["one"]},
            {"name": "peak", "artifacts": []},
            {"name": "defect", "artifacts": ["one", "other"]},
        ],
        "hidden": [{"artifact": "one", "suspects": [{"name": "peak"}]}],
    }
    known.explain(result, sides)
    (suspect,) = result["hidden"][0]["suspects"]
    named = [*result["departures"], suspect]
    patterns = [[finding["pattern"] for finding in entry["known"]] for entry in named]
    assert patterns == [["onnx"], ["openvino"], [], [], ["openvino"]]


def test_findings_of_a_flatbuffer_go_to_its_layers(monkeypatch):
    from targets.layers import known
    from targets.layers.tflite_taps import TfliteFile

    file = TfliteFile.__new__(TfliteFile)
    file.model, file.layers = None, (Layer("add_9", "decoder/add_9", "ADD", (), 0.1),)
    monkeypatch.setattr(known, "tflite_findings", lambda _: [Finding("decoder/add_9", "sum", "", "")])
    side = SimpleNamespace(name="edgetpu", file=file, artifact=SimpleNamespace(target="edgetpu"))
    entry = {"name": "add_9", "artifacts": ["edgetpu"]}
    known.explain({"departures": [entry], "hidden": []}, [side])
    assert [finding["pattern"] for finding in entry["known"]] == ["sum"]


# The verb's own parts


def _samples(defective, good):
    return [
        Sample(f"{kind}{i}", Path(f"{kind}{i}"), None, kind == "d", "test", f"{kind}{i}", "", 0)
        for kind, count in (("d", defective), ("g", good))
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("defective", "good", "count", "wanted"),
    [(10, 10, 4, "d0 d5 g0 g5"), (1, 9, 4, "d0 g0 g3 g6"), (9, 1, 4, "d0 d3 d6 g0"), (0, 3, 8, "g0 g1 g2")],
)
def test_samples_are_spread_over_the_split(defective, good, count, wanted):
    assert " ".join(sample.id for sample in spread(_samples(defective, good), count)) == wanted


def test_the_table_shows_no_more_than_fits():
    ran_on = {"sdk": "openvino", "version": "1", "device": "CPU"}
    error = {"max": 41.0, "mean": 12.0, "share": 1.0}
    entry = {
        "name": "x",
        "label": "head/x",
        "operation": "ReduceMax",
        "inputs": ["a"],
        "error": [error, error],
    }
    first = {**entry, "artifacts": ["one"], "steps": None, "only_tapped": False, "known": []}
    result = {
        "artifacts": [{"name": name, "ran_on": ran_on, "stand_in": name == "two"} for name in ("one", "two")],
        "n": 1,
        "tiles": 1,
        "replay": "a runtime",
        "tolerance_steps": 2.0,
        "instruction_set": None,
        "layers": [{**entry, "label": f"head/{i}", "departs": True, "drift": error} for i in range(20)],
        "outputs": [],
        "departures": [first],
        "first": first,
        "hidden": [],
        "passed": False,
    }
    shown = text(result)
    assert "and 8 more depart" in shown and "two: openvino 1 CPU (stand-in, not verified on device)" in shown
    assert shown.endswith(
        "head/x (ReduceMax) is the first to depart: one is up to 41.0 steps off on equal inputs (12.00 on average)."
    )
