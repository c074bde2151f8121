"""`edgeqc parity --layers` with the real runtimes: healthy artifacts, faults put into files, faults of a runtime."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting needs the toolkit")
onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")

import damage  # noqa: E402
import qdq  # noqa: E402
from edge import cli  # noqa: E402
from edge.artifact import write_manifest  # noqa: E402
from targets.layers import program  # noqa: E402
from targets.tflite_file import read  # noqa: E402
from targets.tflite_writer import pack  # noqa: E402
from tiny_run import NO_BUDGET, write_dataset, write_run_folder  # noqa: E402

TARGETS = ("openvino", "edgetpu", "onnx", "tensorrt")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory, data):
    """One RUN, exported for every target."""
    folder = tmp_path_factory.mktemp("artifacts")
    run = write_run_folder(folder / "run", threshold=-1000.0)
    for target in TARGETS:
        words = ["export", run, "--target", target, "--data", data, "--out", folder / target]
        assert cli.main([*map(str, words), "--calibration", "16", "--precision", "int8", *NO_BUDGET]) == 0
    return folder


def _layers(*paths, data, out=None, samples=4, environment=None):
    """Exit code and result of the verb; in a process of its own where the environment decides."""
    file = (out or paths[0]).parent / "said.json"
    words = ["parity", *paths, "--layers", "--data", data, "--samples", samples]
    words += ["--out", out] if out else []
    words = [*map(str, words), "--json", str(file)]
    if environment is None:
        code = cli.main(words)
    else:
        command = [sys.executable, "-m", "edge.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode in (0, 3), done.stdout + done.stderr
        code = done.returncode
    return code, json.loads(file.read_text())


@pytest.fixture
def damaged(artifacts, tmp_path):
    """Copy an artifact, change its files with `change(folder)`, and list the new digests in its manifest."""

    def make(target, change):
        folder = tmp_path / target
        shutil.copytree(artifacts / target, folder)
        change(folder)
        write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
        return folder

    return make


# Healthy artifacts


@pytest.mark.parametrize("pair", [("openvino", "onnx"), ("edgetpu", "tensorrt"), ("openvino", "edgetpu")])
def test_no_operation_departs_in_sound_artifacts(pair, artifacts, data, tmp_path, capsys):
    code, result = _layers(*(artifacts / name for name in pair), data=data, out=tmp_path / "out")
    assert code == 0 and result["passed"] and result["departures"] == [] and result["hidden"] == []
    assert len(result["layers"]) > 60 and result["layers"][0]["name"] == "input"
    assert [artifact["target"] for artifact in result["artifacts"]] == list(pair)
    stand_ins = [name in ("edgetpu", "tensorrt") for name in pair]
    assert [artifact["stand_in"] for artifact in result["artifacts"]] == stand_ins
    assert "no operation departs" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "layers.json").read_text()) == result
    assert "No operation departs" in (tmp_path / "out" / "layers.html").read_text()
    for row in result["layers"]:
        assert max(error["max"] for error in row["error"]) <= 1.001, row["name"]
        assert row["inputs"] or row["name"] == "input"  # through a PAD as well
    # Each program going its own way comes to the same integers, too.
    assert max(row["drift"]["max"] for row in result["layers"]) < 0.01


def test_the_operations_go_by_the_names_of_the_network_s_modules(artifacts, data):
    _, result = _layers(artifacts / "edgetpu", artifacts / "onnx", data=data, samples=1)
    labels = {row["name"]: row["label"] for row in result["layers"]}
    assert labels["conv2d"] == "encoder.features.0.0/conv2d"
    reads = {row["name"]: row["inputs"] for row in result["layers"]}
    assert reads["conv2d"] == ["input"] and "mask" in labels and "defect" in labels


def test_a_compiled_file_is_tapped_in_the_one_beside_it(artifacts, damaged, data, fake_edgetpu):
    """Also where an Edge TPU is plugged in, which would run the compiled file and show nothing inside."""

    def compiled(folder):
        (folder / "model_edgetpu.tflite").write_bytes(b"TFL3 edgetpu-custom-op")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["model"], manifest["stand_in"]["model"] = "model_edgetpu.tflite", "model.tflite"
        (folder / "manifest.json").write_text(json.dumps(manifest))

    code, result = _layers(damaged("edgetpu", compiled), artifacts / "onnx", data=data, samples=1)
    assert code == 0 and [artifact["stand_in"] for artifact in result["artifacts"]] == [True, False]


# Faults in one artifact's file


@pytest.mark.parametrize(
    ("target", "other", "change", "named"),
    [
        ("onnx", "edgetpu", damage.weight_in_onnx, damage.VICTIM),
        ("onnx", "openvino", damage.scale_in_onnx, damage.VICTIM),
        ("edgetpu", "onnx", damage.weight_in_tflite, damage.VICTIM),
        ("edgetpu", "openvino", damage.scale_in_tflite, damage.VICTIM),
        ("openvino", "onnx", damage.weight_in_openvino, damage.VICTIM),
        ("openvino", "edgetpu", damage.mean_in_openvino, "input"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_exactly_the_changed_operation_is_named(
    target, other, change, named, artifacts, damaged, data, capsys
):
    code, result = _layers(damaged(target, change), artifacts / other, data=data)
    assert code == 3 and not result["passed"]
    assert [entry["name"] for entry in result["departures"]] == [named]
    assert result["first"]["name"] == named and result["first"]["known"] == []
    # A tensor that is written and read with one scale is the same numbers in other steps, and the files say so.
    assert (result["first"]["steps"] is not None) == (change is damage.scale_in_tflite)
    assert f"{result['first']['label']} (" in capsys.readouterr().out


# The known fault of a runtime: processors without AMX, which oneDNN can be told to be


def _noise(folder):
    """A data set of the frames that `qdq` measures with."""
    folder.mkdir()
    rows = ["image,mask,defective,split"]
    for number, frame in enumerate(qdq.frames(4)):
        np.save(folder / f"{number}.npy", frame)
        rows.append(f"{number}.npy,,0,test")
    (folder / "samples.csv").write_text("\n".join(rows) + "\n")
    return folder


def _on_processor(model, folder, instructions=qdq.WITHOUT_AMX):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the fault is in OpenVINO's x86-64 kernels")
    paths = qdq.write_artifacts(model, folder / "artifacts")
    environment = {"ONEDNN_MAX_CPU_ISA": instructions}
    return _layers(*paths, data=_noise(folder / "noise"), environment=environment)


def test_the_maximum_with_a_second_reader_is_named(tmp_path):
    code, result = _on_processor(qdq.reduce_max("ReduceMax"), tmp_path)
    assert code == 3 and result["instruction_set"] == qdq.WITHOUT_AMX
    first = result["first"]
    assert (first["name"], first["operation"], first["artifacts"]) == ("peak", "ReduceMax", ["openvino"])
    assert first["inputs"] == ["features"]
    rows = {row["name"]: row for row in result["layers"]}
    assert rows["features"]["departs"] is False and rows["peak"]["error"][0]["max"] > 20
    assert rows["peak"]["error"][1]["max"] <= 1  # onnxruntime
    (known,) = first["known"]
    assert "second reader" in known["pattern"] and "chain of max pools" in known["remedy"]


def test_the_same_network_with_a_chain_of_max_pools_is_right(tmp_path):
    code, result = _on_processor(qdq.reduce_max("chain"), tmp_path)
    assert code == 0 and result["departures"] == [] and result["hidden"] == []


def test_a_fault_that_a_tap_hides_is_found_tap_by_tap(tmp_path):
    """The known case as it was found: with every tensor tapped each operation is right, and untapped it is not."""
    code, result = _on_processor(qdq.unquantized("ReduceMax"), tmp_path)
    assert result["departures"] == [] and result["first"] is None
    assert code == 3 and not result["passed"]
    (hidden,) = result["hidden"]
    assert hidden["artifact"] == "openvino" and hidden["shift"]["defect"] > 20
    assert hidden["hidden_by"] == ["peak"]
    assert hidden["seen_at"] == "joined"
    assert [one["name"] for one in hidden["suspects"]] == ["peak", "joined"]
    assert "second reader" in hidden["suspects"][0]["known"][0]["pattern"]


def test_the_hidden_case_with_a_chain_of_max_pools_is_right(tmp_path):
    code, result = _on_processor(qdq.unquantized("chain"), tmp_path)
    assert code == 0 and result["departures"] == [] and result["hidden"] == []


def test_a_fault_that_only_a_tap_brings_out_is_told_apart(tmp_path):
    code, result = _on_processor(qdq.residual("ReduceMax"), tmp_path)
    (entry,) = result["departures"]
    assert entry["name"] == "peak" and entry["only_tapped"] and entry["known"]
    assert code == 0 and result["passed"] and result["first"] is None
    (output,) = [one for one in result["outputs"] if one["name"] == "mask"]
    assert output["apart"] < 2 < output["apart_tapped"]


def test_a_convolution_that_saturates_without_vnni_is_named(tmp_path):
    code, result = _on_processor(qdq.saturating(), tmp_path, qdq.WITHOUT_VNNI)
    first = result["first"]
    assert code == 3 and first["artifacts"] == ["openvino"] and first["known"] == []
    assert (first["name"], first["operation"], first["inputs"]) == ("mask", "Conv", ["bright"])


def test_the_same_convolution_is_right_with_vnni(tmp_path):
    processor = Path("/proc/cpuinfo")
    if processor.is_file() and "vnni" not in processor.read_text():
        pytest.skip("this processor has no VNNI, and a variable does not give it any")
    code, result = _on_processor(qdq.saturating(), tmp_path, qdq.WITHOUT_AMX)
    assert code == 0 and result["departures"] == []


# Bad input


def test_two_grids_are_refused(artifacts, data, tmp_path, capsys):
    run = write_run_folder(tmp_path / "run", seed=1, threshold=-1000.0)
    other = tmp_path / "other"
    words = ["export", run, "--target", "onnx", "--data", data, "--out", other, "--precision", "int8"]
    assert cli.main([*map(str, words), *NO_BUDGET]) == 0
    capsys.readouterr()
    _refused(capsys, artifacts / "openvino", other, data=data, says="not two lowerings of one grid")


@pytest.mark.parametrize("other", ["openvino", "edgetpu"])
def test_files_of_different_operations_under_one_manifest_are_refused(
    other, artifacts, damaged, data, capsys
):
    def rename(model):
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = ["renamed" if name == damage.VICTIM else name for name in names]

    file = damaged("onnx", lambda folder: damage.change_onnx(folder, rename))
    _refused(capsys, artifacts / other, file, data=data, says="not two lowerings of one grid")


def _refused(capsys, *paths, data, says, options=()):
    words = ["parity", *paths, "--layers", "--data", data, *options]
    assert cli.main(list(map(str, words))) == 2
    captured = capsys.readouterr()
    assert (
        says in captured.err
        and "Traceback" not in captured.err
        and captured.err.startswith("edgeqc parity: ")
    )
    assert captured.out == ""


def test_the_same_artifact_twice_is_refused(artifacts, data, tmp_path, capsys):
    shutil.copytree(artifacts / "onnx", tmp_path / "copy")
    for twin in (artifacts / "onnx", tmp_path / "copy"):
        _refused(capsys, artifacts / "onnx", twin, data=data, says="are the same artifact")


def test_what_is_no_int8_artifact_is_refused(artifacts, damaged, data, tmp_path, capsys):
    _refused(capsys, artifacts / "onnx", data=data, says="two artifact folders")
    _refused(capsys, *(artifacts / name for name in TARGETS), data=data, says="two artifact folders")
    _refused(capsys, artifacts / "onnx", artifacts / "run", data=data, says="is no artifact")
    _refused(capsys, artifacts / "onnx", tmp_path / "nowhere.npz", data=data, says="is no artifact")
    words = ["export", artifacts / "run", "--target", "onnx", "--data", data, "--out", tmp_path / "fp32"]
    assert cli.main([*map(str, words), "--precision", "fp32"]) == 0
    capsys.readouterr()
    _refused(capsys, artifacts / "openvino", tmp_path / "fp32", data=data, says="not on the integer grid")


def test_a_backend_that_nobody_here_taps_is_refused(artifacts, data, monkeypatch, capsys):
    monkeypatch.delitem(program._FORMATS, "openvino")
    _refused(capsys, artifacts / "openvino", artifacts / "onnx", data=data, says="nobody here can tap")


def test_what_cannot_be_tapped_is_refused(artifacts, damaged, data, capsys):
    def compiled(folder):
        path = folder / "model.tflite"
        model = read(path.read_bytes())
        for code in model.operatorCodes:
            code.builtinCode, code.deprecatedBuiltinCode, code.customCode = 32, 32, b"edgetpu-custom-op"
        path.write_bytes(pack(model))

    file = damaged("edgetpu", compiled)
    _refused(capsys, file, artifacts / "onnx", data=data, says="does not run on the CPU")

    def twin(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "version": "another"}))

    shutil.rmtree(file)
    copy = damaged("openvino", twin)
    _refused(
        capsys,
        artifacts / "openvino",
        copy,
        data=data,
        says="neither artifact can be run operation by operation",
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--reference", "run"), "without full precision"),
        (("--max-flips", "0.1"), "a budget is about verdicts"),
        (("--max-new-misses", "1"), "a budget is about verdicts"),
        (("--samples", "0"), "leave nothing to judge by"),
        (("--tolerance", "0.5"), "leave nothing to judge by"),
        (("--tolerance", "nan"), "leave nothing to judge by"),
        (("--split", "nowhere"), "no sample in split"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says, artifacts, data, capsys):
    _refused(capsys, artifacts / "openvino", artifacts / "onnx", data=data, says=says, options=options)


def test_an_existing_folder_is_not_overwritten(artifacts, data, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    options = ("--out", tmp_path / "out")
    _refused(
        capsys, artifacts / "openvino", artifacts / "onnx", data=data, says="exists already", options=options
    )


def test_parity_against_full_precision_still_asks_for_its_reference(artifacts, data, tmp_path, capsys):
    words = ["parity", artifacts / "onnx", "--data", data]
    assert cli.main([*map(str, words), "--out", str(tmp_path / "p")]) == 2
    assert "--reference is missing" in capsys.readouterr().err
    assert cli.main([*map(str, words), "--reference", str(artifacts / "run")]) == 2
    assert "--out is missing" in capsys.readouterr().err
    words += ["--reference", artifacts / "run", "--out", tmp_path / "p"]
    for option in ("--samples", "--tolerance"):
        assert cli.main([*map(str, words), option, "4"]) == 2
        assert f"{option} is an option of --layers" in capsys.readouterr().err
