"""The evidence of `targets.graph_lint`: each pattern is wrong in the real runtime, each remedy is right, and the lint
tells them apart."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import qdq  # noqa: E402
from targets.graph_lint import onnx_findings, tflite_findings  # noqa: E402
from targets.onnx_writer import operation_name  # noqa: E402
from targets.tflite_file import read  # noqa: E402
from tflite_files import TfliteFile  # noqa: E402

# Faults are off by 10 steps and more; right programs of six operations by 2 at most.
WRONG_STEPS, RIGHT_STEPS = 8, 2


@pytest.fixture(scope="module")
def measured():
    """What `tests/qdq.py` says of steps off, with the instructions of a processor without AMX."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the faults are those of OpenVINO's x86-64 kernels")
    result = subprocess.run(
        [sys.executable, str(Path(qdq.__file__))],
        capture_output=True,
        text=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": qdq.WITHOUT_AMX},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", qdq.KNOWN_FAULTS)
def test_openvino_is_wrong_with_the_pattern_and_right_with_the_remedy(name, measured):
    """Fails when OpenVINO mends a fault: then its rule can go."""
    wrong, right = measured["faults"][name]
    assert wrong > WRONG_STEPS
    assert right <= RIGHT_STEPS


@pytest.mark.parametrize("name", qdq.KNOWN_FAULTS)
def test_the_lint_names_the_pattern_and_passes_the_remedy(name):
    fault, remedy = (build() for build in qdq.KNOWN_FAULTS[name])
    (finding,) = onnx_findings(fault, "openvino")
    assert name in finding.pattern and finding.reason and finding.remedy
    assert finding.operation in {operation_name(node) for node in fault.graph.node}
    assert onnx_findings(remedy, "openvino") == []
    assert onnx_findings(fault, "onnx") == []  # onnxruntime computes all of them rightly


@pytest.mark.parametrize("name", qdq.LET_THROUGH)
def test_the_same_operation_is_let_through_where_it_is_right(name, measured):
    model = qdq.LET_THROUGH[name]()
    assert name.split()[0] in {node.op_type for node in model.graph.node}
    assert measured["let_through"][name] <= RIGHT_STEPS
    assert onnx_findings(model, "openvino") == []


# onnxruntime


def _biased(step):
    """A convolution of a tensor with `step`, whose bias is 3 logits."""
    graph = qdq.Graph()
    raw = graph.convolution(graph.pixels, "small", (8, 1, 1, 1), np.full((8, 1, 1, 1), step * 128))
    small = graph.quantize(raw, step)
    weight = graph.weight("weight", np.full((1, 8, 1, 1), 0.01))
    bias = graph.constant("bias", [3.0])
    graph.output(graph.node("Conv", [small, weight, bias], "mask_logits"), "mask")
    peak = graph.quantize(graph.maximum(small, "peak", "chain"), step)
    graph.output(graph.flat(graph.convolution(peak, "score", (1, 8, 1, 1)), "logit"), "defect")
    return graph.model()


@pytest.mark.parametrize(("step", "wrong"), [(1e-9, True), (1 / 16 / 127, False)])
def test_onnxruntime_overflows_a_bias_that_int32_does_not_hold(step, wrong):
    ort = pytest.importorskip("onnxruntime")
    model = _biased(step)
    x = ((qdq.frames()[0].astype(np.float32) - 128) / 128)[None, None]
    answers = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 3
        answers.append(
            ort.InferenceSession(model.SerializeToString(), options).run(["mask"], {"input": x})[0]
        )
    off = np.abs(answers[0] - answers[1]).max() / qdq.STEP
    assert (off > WRONG_STEPS) == wrong
    for target in ("onnx", "tensorrt"):
        assert [finding.operation for finding in onnx_findings(model, target)] == [
            "module/mask_logits"
        ] * wrong


# TFLite


def _run(payload, *feeds):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=payload, num_threads=1)
    interpreter.allocate_tensors()
    for detail, feed in zip(interpreter.get_input_details(), feeds):
        interpreter.set_tensor(detail["index"], feed)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).astype(float)


@pytest.mark.parametrize(("ratio", "wrong"), [(300, True), (256, True), (250, False)])
def test_xnnpack_adds_wrongly_when_the_output_s_steps_are_far_finer(ratio, wrong):
    pytest.importorskip("ai_edge_litert")
    random = np.random.default_rng(0)
    a, b = (random.integers(-128, 128, (1, 8, 8, 4)).astype(np.int8) for _ in range(2))
    file = TfliteFile()
    terms = [file.source(*a.shape, scale=1), file.source(*b.shape, scale=1)]
    file.operation("ADD", terms, file.tensor(*a.shape, scale=1 / ratio), "AddOptions", version=2)
    payload = file.bytes()
    right = np.clip(np.rint((a.astype(float) + b) * ratio), -128, 127)
    assert (np.abs(_run(payload, a, b) - right).max() > WRONG_STEPS) == wrong
    assert [finding.operation for finding in tflite_findings(read(payload))] == ["t2"] * wrong


@pytest.mark.parametrize(("bias", "wrong"), [(2**31 - 1, True), (2**31 - 4 * 127 * 128 - 1, False)])
def test_tflite_wraps_around_in_the_sum_of_products_and_bias(bias, wrong):
    """A bias that fits into int32 by itself, which is all that the writer asks."""
    pytest.importorskip("ai_edge_litert")
    pixels = np.full((1, 8, 8, 4), 127, np.int8)
    step = 2.0**-10
    file = TfliteFile()
    operands = [
        file.source(*pixels.shape, scale=step),
        file.constant(np.full((4, 1, 1, 4), 127), "INT8", step),
        file.constant(np.full(4, bias), "INT32", step * step),
    ]
    logits = file.tensor(*pixels.shape, scale=(bias + 4 * 127 * 127) * step * step / 100)
    fields = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": 1}
    file.operation("CONV_2D", operands, logits, "Conv2DOptions", version=3, **fields)
    payload = file.bytes()
    assert (np.abs(_run(payload, pixels) - 100).max() > WRONG_STEPS) == wrong
    assert [finding.operation for finding in tflite_findings(read(payload))] == ["t3"] * wrong
