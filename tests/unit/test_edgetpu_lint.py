"""The Edge TPU lint on files that the tests write: one rule at a time, and how the graph is cut."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from tflite_files import TfliteFile

pytest.importorskip("ai_edge_litert")

from edge.errors import InputError
from targets import edgetpu_compiler
from targets.cli import lint as verb
from targets.edgetpu_lint import differences, lint
from targets.edgetpu_lint.evidence import REPORT, TABLE, VENDOR, Evidence, without
from targets.edgetpu_lint.graph import parse_graph
from targets.edgetpu_lint.limits import Limit
from targets.edgetpu_lint.operations import SUPPORTED
from targets.edgetpu_lint.rules import judge

GREY = (1, 8, 8, 4)


def _lint(file, *outputs):
    return lint(parse_graph(file.bytes(*outputs)))


def _plain():
    """Two convolutions."""
    file = TfliteFile()
    file.convolution(file.convolution(file.source(*GREY)), 8)
    return file


def test_a_plain_int8_network_is_mapped_and_its_parameters_are_counted():
    report = _lint(_plain())
    assert (report.on_edgetpu, report.on_cpu, report.unknown) == ({"CONV_2D": 2}, {}, {})
    assert report.subgraphs == 1 and report.findings == ()
    assert report.parameters_bytes == 4 * 4 + 4 * 4 + 8 * 4 + 8 * 4  # weights, and biases of four bytes
    assert report.parameters_fit


def test_shapes_and_axes_are_no_parameters():
    file = TfliteFile()
    pooled = file.operation("MEAN", [file.source(*GREY), file.constant([1, 2])], file.tensor(1, 4))
    file.operation("RESHAPE", [pooled, file.constant([1, 1, 1, 4])], file.tensor(1, 1, 1, 4))
    report = _lint(file)
    assert report.on_edgetpu == {"MEAN": 1, "RESHAPE": 1} and report.parameters_bytes == 0


def test_parameters_beyond_the_chips_memory_are_said():
    file = TfliteFile()
    source = file.source(1, 3000)
    weights = file.weights(3000, 3000)
    file.operation("FULLY_CONNECTED", [source, weights, -1], file.tensor(1, 3000), "FullyConnectedOptions")
    report = _lint(file)
    assert report.on_edgetpu == {"FULLY_CONNECTED": 1}
    assert not report.parameters_fit and "do not fit" in report.text("big.tflite")


def _finding(report, number):
    return next(finding for finding in report.findings if finding.operation == number)


def test_a_float_input_keeps_only_its_quantization_on_the_cpu():
    file = TfliteFile()
    quantized = file.operation("QUANTIZE", [file.source(*GREY, dtype="FLOAT32")], file.tensor(*GREY))
    file.convolution(quantized)
    report = _lint(file)
    assert (report.on_edgetpu, report.on_cpu) == ({"CONV_2D": 1}, {"QUANTIZE": 1})
    assert "unspecified limitation" in _finding(report, 0).reason


def test_eight_bits_to_eight_bits_is_mapped():
    file = TfliteFile()
    quantized = file.operation("QUANTIZE", [file.source(*GREY, dtype="UINT8")], file.tensor(*GREY))
    file.operation("QUANTIZE", [file.convolution(quantized)], file.tensor(*GREY, dtype="UINT8"))
    assert _lint(file).on_edgetpu == {"CONV_2D": 1, "QUANTIZE": 2}


def test_the_first_unmapped_operation_strands_what_depends_on_it_and_nothing_else():
    file = TfliteFile()
    source = file.source(*GREY)
    first = file.convolution(source)
    broken = file.operation("ELU", [first], file.tensor(*GREY))
    behind = file.convolution(broken)
    beside = file.convolution(first)  # later in the file, but of the first run
    file.operation("ADD", [behind, beside], file.tensor(*GREY), "AddOptions")
    report = _lint(file)
    assert report.on_edgetpu == {"CONV_2D": 2}
    assert report.on_cpu == {"ADD": 1, "CONV_2D": 1, "ELU": 1}
    assert report.subgraphs == 1
    assert _finding(report, 1).reason == "Operation not supported"
    assert _finding(report, 2).reason == "More than one subgraph is not supported"
    assert _finding(report, 2).remedy == "map operation 1 first"


def test_a_run_that_starts_on_the_cpu_is_followed_by_one_on_the_edge_tpu():
    file = TfliteFile()
    source = file.source(*GREY)
    file.convolution(file.operation("ELU", [source], file.tensor(*GREY)))
    assert _lint(file).on_edgetpu == {"CONV_2D": 1}
    # With a convolution that is ready at once, the first run is the other one.
    file = TfliteFile()
    source = file.source(*GREY)
    early = file.convolution(source)
    late = file.convolution(file.operation("ELU", [source], file.tensor(*GREY)))
    assert _lint(file, early, late).on_cpu == {"CONV_2D": 1, "ELU": 1}


def test_an_unknown_operation_makes_unknown_what_hangs_on_it_and_nothing_else():
    file = TfliteFile()
    first = file.convolution(file.source(*GREY))
    turned = file.operation(
        "TRANSPOSE", [first, file.constant([0, 2, 1, 3])], file.tensor(*GREY), "TransposeOptions"
    )
    behind = file.convolution(turned)
    beside = file.convolution(first)
    ended = file.operation("DEQUANTIZE", [behind], file.tensor(*GREY, dtype="FLOAT32"))
    report = _lint(file, ended, beside)
    assert report.on_edgetpu == {"CONV_2D": 2}
    assert report.unknown == {"CONV_2D": 1, "TRANSPOSE": 1}
    assert report.on_cpu == {"DEQUANTIZE": 1}
    assert report.subgraphs == 1
    assert "depends on an unknown operation" in _finding(report, 2).reason


def test_behind_the_cpu_even_an_unknown_operation_is_on_the_cpu():
    file = TfliteFile()
    broken = file.operation("ELU", [file.convolution(file.source(*GREY))], file.tensor(*GREY))
    file.operation("TRANSPOSE", [broken, file.constant([0, 2, 1, 3])], file.tensor(*GREY))
    report = _lint(file)
    assert report.unknown == {} and report.on_cpu == {"ELU": 1, "TRANSPOSE": 1}


def test_a_custom_operation_ends_the_network_under_its_own_name():
    file = TfliteFile()
    file.operation(
        "TFLite_Detection_PostProcess",
        [file.convolution(file.source(*GREY))],
        file.tensor(1, 10, dtype="FLOAT32"),
    )
    report = _lint(file)
    assert report.on_cpu == {"TFLite_Detection_PostProcess": 1} and report.on_edgetpu == {"CONV_2D": 1}
    assert "unsupported data type" in _finding(report, 1).reason


def _one(name, shapes, output, options="", constants=(), version=1, **fields):
    """A file of one operation on inputs of `shapes` and constants behind them."""
    file = TfliteFile()
    inputs = [file.source(*shape) for shape in shapes] + [file.constant(values) for values in constants]
    file.operation(name, inputs, file.tensor(*output), options, version, **fields)
    return file


MAPPED, CPU, UNKNOWN = "edgetpu", "cpu", "unknown"


def _placement(file):
    report = _lint(file)
    counts = {MAPPED: report.on_edgetpu, CPU: report.on_cpu, UNKNOWN: report.unknown}
    (placement,) = [place for place, count in counts.items() if count]
    return placement, report.findings[0].reason if report.findings else ""


@pytest.mark.parametrize(
    ("arguments", "fields", "placement", "reason"),
    [
        (("MAX_POOL_2D", [GREY], GREY, "Pool2DOptions"), {}, MAPPED, ""),
        (("MAX_POOL_2D", [GREY], GREY, "Pool2DOptions"), {"fusedActivationFunction": 1}, CPU, "unspecified"),
        (("CONCATENATION", [GREY, GREY], (1, 8, 8, 8), "ConcatenationOptions"), {"axis": 3}, MAPPED, ""),
        (("SOFTMAX", [(1, 16384)], (1, 16384)), {}, MAPPED, ""),
        (("SOFTMAX", [(1, 16385)], (1, 16385)), {}, CPU, "unspecified"),
        (("SOFTMAX", [GREY], GREY), {}, UNKNOWN, "64 rows"),
        (("MEAN", [(1, 64, 128, 4)], (1, 4), "", [[1, 2]]), {}, MAPPED, ""),
        (("MEAN", [(1, 256, 128, 4)], (1, 4), "", [[1, 2]]), {}, CPU, "unspecified"),
        (("MEAN", [(1, 128, 128, 4)], (1, 4), "", [[1, 2]]), {}, UNKNOWN, "16384 positions"),
        (("MEAN", [(1, 8, 8, 6)], (1, 8, 8), "", [[3]]), {}, CPU, "unspecified"),
        (("MEAN", [(1, 8, 8, 8)], (1, 8, 8), "", [[-1]]), {}, MAPPED, ""),
        (("MEAN", [GREY], (8, 8, 4), "", [[0]]), {}, CPU, "unspecified"),
        (("SUM", [(8, 4)], (4,), "", [[0]]), {}, UNKNOWN, "first side"),
        (("PAD", [GREY], (1, 10, 10, 4), "", [[[0, 0], [1, 1], [1, 1], [0, 0]]]), {}, MAPPED, ""),
        (("PAD", [GREY], (2, 8, 8, 4), "", [[[0, 1], [0, 0], [0, 0], [0, 0]]]), {}, CPU, "unsupported rank"),
        (("ADD", [(2, 8, 8, 4)] * 2, (2, 8, 8, 4), "AddOptions"), {}, CPU, "unsupported rank"),
        (("ADD", [(1, 2, 8, 8, 4)] * 2, (1, 2, 8, 8, 4), "AddOptions"), {}, CPU, "unsupported rank"),
        (("ADD", [(-1, 8, 8, 4)] * 2, (-1, 8, 8, 4), "AddOptions"), {}, CPU, "static-sized"),
        (("ADD", [GREY] * 2, GREY, "AddOptions", (), 9), {}, UNKNOWN, "version 9"),
        (("ADD", [(1, 4000, 3000, 1)] * 2, (1, 4000, 3000, 1), "AddOptions"), {}, UNKNOWN, "12000000 elements"),
        (("RESIZE_BILINEAR", [GREY], (1, 16, 16, 4), "", [[16, 16]]), {}, MAPPED, ""),
        (("RESIZE_BILINEAR", [(1, 1, 1, 4)], (1, 33, 33, 4), "", [[33, 33]]), {}, MAPPED, ""),
        (("RESIZE_BILINEAR", [GREY], (1, 64, 64, 4), "", [[64, 64]]), {}, UNKNOWN, "by more than two"),
        (
            ("RESIZE_NEAREST_NEIGHBOR", [(1, 256, 256, 32)], (1, 512, 512, 32), "", [[512, 512]]),
            {}, CPU, "unspecified",
        ),
        (
            ("RESIZE_NEAREST_NEIGHBOR", [(1, 128, 128, 32)], (1, 256, 256, 32), "", [[256, 256]]),
            {}, UNKNOWN, "2097152 elements",
        ),
        (("RESHAPE", [(1, 1000, 1000)], (1, 1000000), "", [[1, -1]]), {}, UNKNOWN, "1000000 elements"),
        (("PACK", [(8, 8, 4)] * 2, (2, 8, 8, 4), "PackOptions"), {"axis": 0}, CPU, "unsupported rank"),
        (("PACK", [(1, 8, 4)] * 2, (1, 2, 8, 4), "PackOptions"), {"axis": 1}, MAPPED, ""),
        (("FULLY_CONNECTED", [(1, 4), (4, 4)], (1, 4)), {}, CPU, "not constant at compile-time"),
        (("LOGISTIC", [GREY], GREY), {}, MAPPED, ""),
        (("HARD_SWISH", [GREY], GREY), {}, CPU, "not supported"),
        (("TRANSPOSE", [GREY], GREY, "", [[0, 2, 1, 3]]), {}, UNKNOWN, "TRANSPOSE"),
    ],
)  # fmt: skip
def test_one_operation(arguments, fields, placement, reason):
    found, why = _placement(_one(*arguments, **fields))
    assert found == placement and reason in why


@pytest.mark.parametrize(
    ("fields", "placement"),
    [
        ({"dilationWFactor": 2, "dilationHFactor": 2}, MAPPED),
        ({"dilationWFactor": 2, "dilationHFactor": 1}, CPU),
        ({"fusedActivationFunction": 3}, MAPPED),
    ],
)
def test_a_convolutions_options(fields, placement):
    file = TfliteFile()
    file.convolution(file.source(*GREY), **fields)
    assert _placement(file)[0] == placement


@pytest.mark.parametrize(
    ("strides", "fields", "reason"),
    [
        ([1, 1, 1, 1], {}, ""),
        ([1, 2, 2, 1], {}, "unitary strides"),
        ([1, 1, 1, 1], {"ellipsisMask": 1}, "unspecified"),
        ([1, 1, 1, 1], {"newAxisMask": 2}, "unspecified"),
        ([1, 1, 1, 1], {"beginMask": 1, "shrinkAxisMask": 0}, ""),
    ],
)
def test_slices(strides, fields, reason):
    bounds = [[0, 0, 0, 0], [1, 4, 4, 4], strides]
    file = _one("STRIDED_SLICE", [GREY], (1, 4, 4, 4), "StridedSliceOptions", bounds, **fields)
    found, why = _placement(file)
    assert found == (CPU if reason else MAPPED) and reason in why


@pytest.mark.parametrize(("values", "others", "placement"), [(0, 1, MAPPED), (1, 1, CPU), (0, 2, CPU)])
def test_concatenation_with_a_constant_is_padding_or_nothing(values, others, placement):
    file = TfliteFile()
    block = file.constant(np.full(GREY, values), "INT8", 0.5)
    inputs = [*(file.source(*GREY) for _ in range(others)), block]
    file.operation(
        "CONCATENATION", inputs, file.tensor(1, 8, 8, 4 * len(inputs)), "ConcatenationOptions", axis=3
    )
    assert _placement(file)[0] == placement


@pytest.mark.parametrize(("axis", "placement"), [(3, MAPPED), (0, CPU)])
def test_splitting_leaves_the_batch_alone(axis, placement):
    file = TfliteFile()
    halves = [file.tensor(1, 8, 8, 2), file.tensor(1, 8, 8, 2)]
    file.operation("SPLIT", [file.constant(axis), file.source(*GREY)], halves, "SplitOptions", numSplits=2)
    assert _placement(file)[0] == placement


@pytest.mark.parametrize(("slopes", "placement"), [((1, 1, 4), MAPPED), ((8, 8, 4), CPU)])
def test_slopes_are_shared_over_the_map(slopes, placement):
    file = TfliteFile()
    file.operation("PRELU", [file.source(*GREY), file.weights(*slopes)], file.tensor(*GREY))
    assert _placement(file)[0] == placement


def test_weights_behind_the_flatbuffer_are_no_constants():
    """What `ai_edge_quantizer` writes: TensorFlow 2.5's age sees no data there."""
    file = _plain()
    buffer = file.model.buffers[1]
    buffer.data, buffer.offset, buffer.size = None, 4096, 16
    report = _lint(file)
    assert report.on_cpu == {"CONV_2D": 1}
    assert "not constant" in _finding(report, 0).reason and "flatbuffer" in _finding(report, 0).remedy


def test_a_tensor_without_a_scale_is_unknown():
    file = _one("RELU", [GREY], GREY)
    file.graph.tensors[-1].quantization = None
    assert _placement(file)[0] == UNKNOWN


def test_a_grouped_convolution_is_unknown():
    file = _plain()
    file.graph.tensors[1].shape = [4, 1, 1, 2]
    report = _lint(file)
    assert report.unknown == {"CONV_2D": 1}
    assert report.on_edgetpu == {"CONV_2D": 1}  # the one behind it, whichever way it goes


def test_sixteen_bits_are_not_taken():
    file = TfliteFile()
    file.operation("RELU", [file.convolution(file.source(*GREY))], file.tensor(*GREY, dtype="INT16"))
    report = _lint(file)
    assert report.on_cpu == {"RELU": 1} and "data type" in _finding(report, 1).reason


def test_further_graphs_are_counted_as_unknown():
    file = _plain()
    other = TfliteFile()
    other.convolution(other.source(*GREY))
    file.model.subgraphs.append(other.graph)
    report = _lint(file)
    assert report.on_edgetpu == {"CONV_2D": 2} and report.unknown == {"CONV_2D": 1}
    assert "further graph" in report.findings[-1].reason and report.findings[-1].operation == -1


# Evidence


def test_a_limit_knows_only_what_was_seen():
    near, far = Evidence("one", "a.tflite"), Evidence("two", "b.tflite")
    limit = Limit("elements", [(10, near), (20, far)], [(40, far)])
    assert [limit.place(size)[0] for size in (10, 20, 21, 39, 40, 100)] == [
        True,
        True,
        None,
        None,
        False,
        False,
    ]
    assert limit.place(15)[1] == far and limit.largest_mapped() == 20
    assert [limit.place(size, without(["two"]))[0] for size in (10, 15, 100)] == [True, None, None]


def test_a_rule_whose_witnesses_are_silent_does_not_decide():
    file = _one("SOFTMAX", [(1, 16384)], (1, 16384))
    graph = parse_graph(file.bytes())
    assert lint(graph).on_edgetpu and not lint(graph, without(["ricardodeazambuja"])).on_edgetpu
    tile = parse_graph(_one("TILE", [GREY], (1, 16, 8, 4), "", [[1, 2, 1, 1]]).bytes())
    assert lint(tile).on_edgetpu == {"TILE": 1}
    assert lint(tile, without(["google-coral"])).on_cpu == {"TILE": 1}


def test_without_any_witness_nothing_is_decided():
    def silence(_evidence):
        return False

    for name in ("CONV_2D", "ELU", "DEQUANTIZE"):
        assert judge(parse_graph(_one(name, [GREY], GREY).bytes()).operations[0], silence).mapped is None


def test_every_supported_operation_has_a_witness():
    assert all(SUPPORTED.values())
    assert not TABLE.where.startswith("http://") and TABLE.kind == VENDOR != REPORT


# The verb, and the compiler at its side


def _run(path, capsys, *words):
    from argparse import ArgumentParser

    from edge.command import Outcome

    parser = ArgumentParser()
    verb.configure(parser)
    outcome = verb.run(parser.parse_args([str(path), *words]))
    assert isinstance(outcome, Outcome) and json.dumps(outcome.data)
    return outcome


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(edgetpu_compiler, "find", lambda: None)


def _write(path, file):
    path.write_bytes(file.bytes())
    return path


def test_the_verb_says_what_and_why(tmp_path, capsys, no_compiler):
    outcome = _run(_write(tmp_path / "a.tflite", _plain()), capsys)
    assert outcome.exit_code == 0 and "2 on the Edge TPU" in outcome.text
    assert set(outcome.data) >= {
        "on_edgetpu",
        "on_cpu",
        "unknown",
        "subgraphs",
        "parameters_bytes",
        "findings",
    }
    outcome = _run(_write(tmp_path / "b.tflite", _one("HARD_SWISH", [GREY], GREY)), capsys)
    assert outcome.exit_code == 3
    assert "reason:   Operation not supported" in outcome.text and "remedy:" in outcome.text
    (finding,) = outcome.data["findings"]
    assert finding["operation"] == 0 and finding["type"] == "HARD_SWISH"
    assert finding["reason"] and finding["remedy"] and finding["evidence"]


def test_the_unknown_is_no_failure_but_is_said(tmp_path, capsys, no_compiler):
    file = _one("TRANSPOSE", [GREY], GREY, "", [[0, 2, 1, 3]])
    outcome = _run(_write(tmp_path / "a.tflite", file), capsys)
    assert outcome.exit_code == 0 and "1 unknown" in outcome.text and "No evidence" in outcome.text


def _install_compiler(folder, monkeypatch, log):
    """A program of the compiler's name; called as: edgetpu_compiler --show_operations --out_dir DIR FILE."""
    folder.mkdir()
    (folder / "log.txt").write_text(log)
    program = folder / edgetpu_compiler.PROGRAM
    program.write_text(f'#!/bin/sh\ncp "$4" "$3/model_edgetpu.tflite"; cat {folder}/log.txt\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


HEAD = "Edge TPU Compiler version 16.0.384591198\nOperator    Count      Status\n\n"


def test_a_compiler_that_agrees(tmp_path, capsys, monkeypatch):
    _install_compiler(tmp_path / "bin", monkeypatch, f"{HEAD}CONV_2D     2     Mapped to Edge TPU\n")
    path = _write(tmp_path / "a.tflite", _plain())
    outcome = _run(path, capsys)
    assert outcome.exit_code == 0 and outcome.data["compiler"]["differences"] == []
    assert "as predicted" in outcome.text
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "a.tflite",
        "bin",
    ]  # nothing beside the file


def test_a_compiler_that_does_not_agree_is_reported_and_right(tmp_path, capsys, monkeypatch):
    rows = "CONV_2D     1     Mapped to Edge TPU\nCONV_2D     1     Tensor is cursed\n"
    _install_compiler(tmp_path / "bin", monkeypatch, HEAD + rows)
    outcome = _run(_write(tmp_path / "a.tflite", _plain()), capsys)
    assert outcome.exit_code == 3
    (difference,) = outcome.data["compiler"]["differences"]
    assert "predicted 2 on the Edge TPU" in difference and "Tensor is cursed" in difference
    assert difference in outcome.text


def test_a_compiler_that_refuses_the_file_is_the_result(tmp_path, capsys, monkeypatch):
    _install_compiler(tmp_path / "bin", monkeypatch, "")
    (tmp_path / "bin" / edgetpu_compiler.PROGRAM).write_text("#!/bin/sh\necho 'Internal error' >&2; exit 1\n")
    outcome = _run(_write(tmp_path / "a.tflite", _plain()), capsys)
    assert outcome.exit_code == 3 and "Internal error" in outcome.data["compiler"]["error"]
    assert "Internal error" in outcome.text and outcome.data["on_edgetpu"] == {"CONV_2D": 2}


def _log(*rows):
    table = "".join(f"{name:30} {count:<10} {status}\n" for name, count, status in rows)
    return edgetpu_compiler.parse_log(HEAD + table)


def test_the_log_calls_custom_operations_custom():
    file = TfliteFile()
    file.operation("MyDecoder", [file.convolution(file.source(*GREY))], file.tensor(1, 2, dtype="FLOAT32"))
    mapped = ("CONV_2D", 1, edgetpu_compiler.MAPPED)
    report = _lint(file)
    assert differences(report, _log(mapped, ("CUSTOM", 1, "Operation is working on ..."))) == []
    assert len(differences(report, _log(mapped))) == 1


def test_an_unknown_operation_agrees_with_any_log():
    report = _lint(_one("TRANSPOSE", [GREY], GREY, "", [[0, 2, 1, 3]]))
    assert differences(report, _log(("TRANSPOSE", 1, edgetpu_compiler.MAPPED))) == []
    assert differences(report, _log(("TRANSPOSE", 1, "Operation not supported"))) == []
    assert differences(report, _log(("TRANSPOSE", 2, edgetpu_compiler.MAPPED))) != []


def test_a_float_network_is_bad_input():
    file = TfliteFile()
    file.operation("RELU", [file.source(*GREY, dtype="FLOAT32")], file.tensor(*GREY, dtype="FLOAT32"))
    with pytest.raises(InputError, match="not quantized"):
        _lint(file)
