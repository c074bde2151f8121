"""The lint refuses before a file is written. What its rules rest on: tests/integration/test_known_faults.py."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import qdq  # noqa: E402
import targets  # noqa: E402
from edge.preprocess import InputSpec  # noqa: E402
from targets import graph_lint  # noqa: E402
from targets.errors import KnownFaultError  # noqa: E402
from targets.graph_lint import Finding, onnx_findings, refuse  # noqa: E402
from targets.lowering import Network  # noqa: E402
from targets.profile import load_profile  # noqa: E402


def _network(model):
    """A network whose lowering to ONNX is done already."""
    tiles = np.zeros((1, qdq.SIZE, qdq.SIZE, 1), np.uint8)
    network = Network(torch.nn.Identity(), InputSpec(qdq.SIZE, qdq.SIZE), tiles)
    for shift in (False, True):
        network.made["onnx", "int8", 18, shift] = model
    return network


def test_openvino_refuses_the_known_case_before_it_writes(tmp_path):
    pytest.importorskip("openvino")
    target = targets.find_target("openvino")
    with pytest.raises(KnownFaultError) as caught:
        target.lower(_network(qdq.reduce_max()), "int8", tmp_path, load_profile(None, "openvino"))
    assert caught.value.exit_code == 3
    message = str(caught.value)
    for part in ("1 place in the network", "openvino", "peak", "second reader", "chain of max pools"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_the_onnx_targets_ask_the_lint_for_themselves(target, tmp_path, monkeypatch):
    asked = []

    def findings(_model, name):
        asked.append(name)
        return [Finding("here", "something", "It goes wrong.", "do not.")]

    monkeypatch.setattr("targets.onnx.onnx_findings", findings)
    with pytest.raises(KnownFaultError, match="1 place"):
        targets.find_target(target).lower(
            _network(qdq.reduce_max("chain")), "int8", tmp_path, load_profile(None, target)
        )
    assert asked == [target] and list(tmp_path.iterdir()) == []


def test_the_edge_tpu_file_is_judged_before_it_is_written(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    found = [Finding("here", "something", "It goes wrong.", "do not.")] * 2
    monkeypatch.setattr("targets.edgetpu.tflite", lambda *_: b"payload")
    monkeypatch.setattr("targets.edgetpu.read", lambda payload: payload)
    monkeypatch.setattr("targets.edgetpu.tflite_findings", lambda model: found if model == b"payload" else [])
    network = _network(None)
    network.grid = type("Grid", (), {"folded": None})()
    with pytest.raises(KnownFaultError, match="2 places"):
        targets.find_target("edgetpu").lower(network, "int8", tmp_path, load_profile(None, "edgetpu"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_found_is_nothing_refused():
    refuse([], "openvino")


def test_readers_are_counted_through_every_dequantize_and_outputs_read_too():
    def maximum_beside(reader):
        graph = qdq.Graph()
        features = graph.features("features")
        peak = graph.quantize(graph.maximum(features, "peak", "ReduceMax"))
        graph.output(graph.fully_connected(peak, "logit", 8), "defect")
        if reader == "dequantize of its own":
            int8 = [f"{name}" for name in ("features/clamp/int8", "features/clamp/step", "zero")]
            graph.mask(graph.node("DequantizeLinear", int8, "again"))
        if reader == "output":
            graph.outputs.append(features)
        return onnx_findings(graph.model(), "openvino")

    assert maximum_beside("nobody") == []
    assert len(maximum_beside("dequantize of its own")) == 1
    assert len(maximum_beside("output")) == 1


def test_a_convolution_need_not_read_through_a_quantize():
    graph = qdq.Graph()
    joined = graph.node("Concat", [graph.features("one"), graph.features("other")], "joined", axis=1)
    graph.output(graph.convolution(joined, "mask_logits", (1, 16, 1, 1)), "mask")
    graph.score(graph.features("others"))
    (finding,) = onnx_findings(graph.model(), "openvino")
    assert finding.operation == "module/joined"


def test_a_float_graph_has_no_known_faults():
    from onnx import TensorProto, helper

    names = ["ReduceMax", "Concat", "ReduceMin"]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["ReduceMax"], keepdims=1),
        helper.make_node("ReduceMin", ["x"], ["ReduceMin"], keepdims=1),
        helper.make_node("Concat", ["x", "x"], ["Concat"], axis=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    model = helper.make_model(helper.make_graph(nodes, "float", [x], outputs))
    for target in graph_lint.ONNX_RULES:
        assert onnx_findings(model, target) == []
