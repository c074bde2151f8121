"""Files that are no network for the lint: one message and exit code 2, never a traceback."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest

from tflite_files import TfliteFile

pytest.importorskip("ai_edge_litert")

from edge.errors import EdgeError, InputError
from targets.cli import lint as verb
from targets.edgetpu_lint import lint, lint_file, read_graph
from targets.edgetpu_lint.graph import parse_graph

GREY = (1, 8, 8, 4)


@pytest.fixture(scope="module")
def payload():
    file = TfliteFile()
    found = file.convolution(file.convolution(file.source(*GREY)), 8)
    pooled = file.operation("MEAN", [found, file.constant([1, 2])], file.tensor(1, 8), "ReducerOptions")
    file.operation("RESHAPE", [pooled, file.constant([8])], file.tensor(8), "ReshapeOptions")
    return file.bytes()


def _refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        verb.run(Namespace(file=path))
    assert caught.value.exit_code == 2
    return caught.value


def test_what_is_not_there_and_what_is_a_folder(tmp_path):
    _refused(tmp_path / "nowhere.tflite", "cannot be read")
    _refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("content", [b"", b"TFL3", b"not a flatbuffer at all", b"\0" * 64, b"PK\x03\x04" * 9])
def test_no_tflite_file(tmp_path, content):
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    error = _refused(path, "no TFLite file")
    assert "TFL3" in str(error.wanted)


def test_a_truncated_file_is_refused_wherever_it_ends(payload):
    for length in range(0, len(payload) - 4, 7):
        with pytest.raises(InputError):
            parse_graph(payload[:length])


def test_a_damaged_file_is_read_or_refused_but_never_crashes():
    file = TfliteFile()
    file.convolution(file.source(1, 2, 2, 2), 2)
    sound = file.bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(sound)
        for place in random.integers(8, len(damaged), random.integers(1, 4)):
            damaged[place] = random.integers(256)
        try:
            report = lint(parse_graph(bytes(damaged)))
            report.text("damaged")
        except EdgeError:
            refused += 1
    assert refused > 300


def test_garbage_behind_a_right_beginning():
    random = np.random.default_rng(1)
    for size in (0, 8, 100, 5000):
        with pytest.raises(InputError):
            parse_graph(b"\x10\0\0\0TFL3" + random.bytes(size))


def test_a_model_without_anything_in_it(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(TfliteFile().bytes())
    _refused(path, "holds no operation")
    empty = TfliteFile()
    empty.model.subgraphs = []
    path.write_bytes(empty.bytes())
    _refused(path, "holds no operation")


def test_a_file_that_is_compiled_already(tmp_path):
    file = TfliteFile()
    file.operation("edgetpu-custom-op", [file.source(*GREY)], file.tensor(*GREY))
    path = tmp_path / "a_edgetpu.tflite"
    path.write_bytes(file.bytes())
    _refused(path, "compiled already")


def test_a_float_network_and_one_with_quantized_weights_only(tmp_path):
    for weights in ("FLOAT32", "INT8"):
        file = TfliteFile()
        source, output = (file.tensor(*GREY, dtype="FLOAT32") for _ in range(2))
        kernel = file.constant(np.ones((4, 1, 1, 4)), weights, 0.1)
        file.operation("CONV_2D", [source, kernel, -1], output, "Conv2DOptions")
        file.graph.inputs = [source]
        path = tmp_path / f"{weights}.tflite"
        path.write_bytes(file.bytes())
        assert "int8" in str(_refused(path, "not quantized").next_step)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: setattr(file.graph.operators[0], "inputs", [99]),
        lambda file: setattr(file.graph.operators[0], "inputs", [-2]),
        lambda file: setattr(file.graph.operators[0], "outputs", []),
        lambda file: setattr(file.graph.operators[0], "opcodeIndex", 7),
        lambda file: setattr(file.graph.tensors[0], "buffer", 77),
        lambda file: setattr(file.graph.tensors[0], "type", 120),
    ],
)
def test_indices_that_point_nowhere(tmp_path, change):
    file = TfliteFile()
    file.convolution(file.source(*GREY))
    change(file)
    path = tmp_path / "a.tflite"
    path.write_bytes(file.bytes())
    _refused(path, "damaged")


def test_a_graph_that_goes_in_circles_ends():
    file = TfliteFile()
    one, two = file.tensor(*GREY), file.tensor(*GREY)
    file.operation("RELU", [one], two)
    file.operation("RELU", [two], one)
    report = lint(parse_graph(file.bytes()))
    assert report.on_cpu == {"RELU": 2} and report.subgraphs == 0


def test_an_operation_newer_than_the_schema(tmp_path):
    file = TfliteFile()
    file.operation("RELU", [file.source(*GREY)], file.tensor(*GREY))
    file.model.operatorCodes[0].builtinCode = 9999
    path = tmp_path / "a.tflite"
    path.write_bytes(file.bytes())
    assert lint_file(path).on_cpu == {"BUILTIN_9999": 1}
    assert read_graph(path).operations[0].name == "BUILTIN_9999"


def test_many_operations_do_not_take_forever():
    file = TfliteFile()
    found = file.source(1, 4)
    for _ in range(3000):
        found = file.operation("RELU", [found], file.tensor(1, 4))
    assert lint(parse_graph(file.bytes())).on_edgetpu == {"RELU": 3000}
