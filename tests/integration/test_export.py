"""`edgeqc export` and `edgeqc parity` through the command line, on a small network with random weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tiny_run import LOOSE_MASKS, write_dataset, write_run_folder

pytest.importorskip("torch", reason="exporting needs the toolkit")

from edge import cli, golden
from edge.artifact import Artifact
from edge.inspector import open_inspector
from edge.samples import read_samples

TARGETS = ("openvino", "edgetpu", "tensorrt", "onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run_folder(tmp_path_factory.mktemp("run") / "run", threshold=-1000.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, data, run):
    """Every target's artifact, and what the verb said: (code, JSON)."""
    folder = tmp_path_factory.mktemp("artifacts")
    said = {}
    for target in TARGETS:
        file = folder / f"{target}.json"
        arguments = [
            "export",
            run,
            "--target",
            target,
            "--data",
            data,
            "--out",
            folder / target,
            "--calibration",
            16,
            *LOOSE_MASKS,
        ]
        code = cli.main([*map(str, arguments), "--json", str(file)])
        said[target] = code, json.loads(file.read_text())
    return folder, said


@pytest.mark.parametrize("target", TARGETS)
def test_the_first_candidate_that_passes_becomes_the_artifact(exported, target, run):
    folder, said = exported
    code, result = said[target]
    assert code == 0 and result["passed"] and result["precision"] == "int8"
    artifact = Artifact.open(folder / target)
    manifest = artifact.manifest
    recorded = json.loads((run / "run.json").read_text())
    assert manifest["decision"]["threshold"] == recorded["decision"]["threshold"]
    assert manifest["mask_threshold"] == recorded["mask_threshold"]
    assert manifest["calibration"]["count"] == 16
    assert manifest["gate"]["passed"] and manifest["gate"]["flips"] == 0
    assert manifest["gate"]["stand_in"] == (target in ("edgetpu", "tensorrt"))
    assert {entry["path"] for entry in manifest["files"]} >= {"golden.npz", "gate.json"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifest_keeps_its_published_schema(exported, target):
    jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked with jsonschema")
    from importlib.resources import files

    schema = json.loads((files("edge") / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((exported[0] / target / "manifest.json").read_text()), schema)


@pytest.mark.parametrize("target", TARGETS)
def test_golden_frames_pass_where_they_were_made(exported, target):
    folder = exported[0] / target
    with open_inspector(folder, stand_in=True) as inspector:
        checks = golden.check(inspector, folder, inspector_facts(folder))
    assert checks and all(check.passed and check.bytes_equal for check in checks)


@pytest.mark.parametrize(
    ("target", "precision"), [("openvino", "fp16"), ("onnx", "fp32"), ("tensorrt", "fp16")]
)
def test_a_float_artifact_passes_its_own_self_test(data, run, tmp_path, target, precision):
    out = tmp_path / "a"
    words = ["export", run, "--target", target, "--data", data, "--out", out, "--calibration", 16]
    assert cli.main([*map(str, words), "--precision", precision]) == 0
    with open_inspector(out, stand_in=True) as inspector:
        assert all(check.passed for check in golden.check(inspector, out, inspector_facts(out)))
    assert cli.main(["selftest", str(out), "--stand-in"]) == 0


def test_evaluate_takes_an_artifact_on_its_stand_in_only_when_asked(exported, data, capsys):
    artifact = str(exported[0] / "edgetpu")
    assert cli.main(["evaluate", artifact, "--data", str(data), "--split", "test"]) == 4
    assert cli.main(["evaluate", artifact, "--data", str(data), "--split", "test", "--stand-in"]) == 0
    assert "stand-in, not verified on device" in capsys.readouterr().out


def test_a_foreign_folder_under_the_rejected_name_is_not_overwritten(data, run, tmp_path, capsys):
    foreign = tmp_path / "a.rejected"
    foreign.mkdir()
    (foreign / "precious.txt").write_text("mine")
    words = ["export", run, "--target", "onnx", "--data", data, "--out", tmp_path / "a"]
    assert cli.main(list(map(str, words))) == 2
    assert (foreign / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", ["truncated", "changed byte", "format", "no manifest"])
@pytest.mark.parametrize("verb", ["parity", "evaluate"])
def test_a_damaged_artifact_is_one_message_on_the_host_verbs_too(
    exported, data, run, tmp_path, capsys, verb, damage
):
    artifact = tmp_path / "a"
    shutil.copytree(exported[0] / "onnx", artifact)
    model, manifest = artifact / "model.onnx", artifact / "manifest.json"
    if damage == "truncated":
        model.write_bytes(model.read_bytes()[:-10])
    elif damage == "changed byte":
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    elif damage == "format":
        manifest.write_text(manifest.read_text().replace("edgeqc-artifact/1", "edgeqc-artifact/9"))
    else:
        manifest.unlink()
    words = {
        "parity": ["parity", artifact, "--reference", run, "--data", data, "--out", tmp_path / "p"],
        "evaluate": ["evaluate", artifact, "--data", data],
    }[verb]
    assert cli.main(list(map(str, words))) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"edgeqc {verb}: ") and "Traceback" not in captured.err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("damage", ["weights", "format", "no run.json"])
@pytest.mark.parametrize("verb", ["export", "evaluate", "predict"])
def test_a_damaged_run_is_one_message(data, run, tmp_path, capsys, verb, damage):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    if damage == "weights":
        content = (broken / "model.safetensors").read_bytes()
        (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "format":
        facts = (broken / "run.json").read_text().replace("edgeqc-run/1", "edgeqc-run/9")
        (broken / "run.json").write_text(facts)
    else:
        (broken / "run.json").unlink()
    words = {
        "export": ["export", broken, "--target", "onnx", "--data", data, "--out", tmp_path / "a"],
        "evaluate": ["evaluate", broken, "--data", data],
        "predict": ["predict", broken, "--data", data, "--split", "test", "--out", tmp_path / "p.npz"],
    }[verb]
    assert cli.main(list(map(str, words))) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"edgeqc {verb}: ") and "Traceback" not in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_an_unreadable_image_of_val_is_named(run, tmp_path, capsys):
    data = write_dataset(tmp_path / "set")
    val = read_samples(data, "val")[0]
    val.image.write_bytes(b"P5 48 48 255\n short")
    words = ["export", run, "--target", "onnx", "--data", data, "--out", tmp_path / "a"]
    assert cli.main(list(map(str, words))) == 2
    assert val.image.name in capsys.readouterr().err


def inspector_facts(folder):
    return Artifact.open(folder).manifest["golden"]


def test_parity_over_all_targets_writes_one_report(exported, data, run, tmp_path):
    folder, _ = exported
    paths = [str(folder / target) for target in TARGETS]
    code = cli.main(
        [
            "parity",
            *paths,
            "--reference",
            str(run),
            "--data",
            str(data),
            "--split",
            "test",
            "--out",
            str(tmp_path / "p"),
            *LOOSE_MASKS,
        ]
    )
    assert code == 0
    result = json.loads((tmp_path / "p" / "parity.json").read_text())
    assert [row["target"] for row in result["artifacts"]] == list(TARGETS)
    assert result["n"] == len(read_samples(data, "test"))
    assert len(result["cross"]) == 6
    assert (tmp_path / "p" / "report.html").stat().st_size > 10_000


def test_a_missed_budget_is_exit_3_and_kept_as_rejected(data, run, tmp_path, capsys):
    out = tmp_path / "artifact"
    arguments = ["export", run, "--target", "edgetpu", "--data", data, "--out", out, "--calibration", 16]
    # No integer network has masks equal to full precision's in every pixel.
    code = cli.main([*map(str, arguments), "--min-mask-agreement", "1.0"])
    assert code == 3
    assert not out.exists()
    rejected = Artifact.open(tmp_path / "artifact.rejected")
    assert rejected.manifest["gate"]["passed"] is False
    assert any("mask agreement" in reason for reason in rejected.manifest["gate"]["reasons"])
    tried = json.loads((rejected.path / "gate.json").read_text())["candidates"]
    assert len(tried) == 4
    nearest = max(tried, key=lambda one: one["row"]["mask_agreement_iou"])
    kept = rejected.manifest["calibration"]
    assert (kept["ranges"], kept["widening"]) == (nearest["ranges"], nearest["widening"])
    assert "rejected" in capsys.readouterr().out


def test_what_the_edge_tpu_would_run_is_in_the_manifest(exported):
    lint = Artifact.open(exported[0] / "edgetpu").manifest["lowering"]["lint"]
    assert lint["on_edgetpu"]["CONV_2D"] > 10 and lint["on_cpu"] == {} and lint["findings"] == []
    assert cli.main(["lint", str(exported[0] / "edgetpu" / "model.tflite")]) == 0


def test_operations_left_to_the_cpu_fail_the_export_unless_allowed(data, run, tmp_path, monkeypatch, capsys):
    """By the log of a compiler, which is all of it that is not real here."""
    log = (
        "Edge TPU Compiler version 16.0.384591198\n\n"
        "CONV_2D                        1          Mapped to Edge TPU\n"
        "MEAN                           1          Operation not supported\n"
    )
    program = tmp_path / "bin" / "edgetpu_compiler"
    program.parent.mkdir()
    (program.parent / "log.txt").write_text(log)
    compiled = '"$3/model_edgetpu.tflite"'
    program.write_text(
        f'#!/bin/sh\ncp "$4" {compiled}; printf edgetpu-custom-op >> {compiled}; cat {program.parent}/log.txt\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    words = ["export", run, "--target", "edgetpu", "--data", data, *LOOSE_MASKS, "--calibration", 16, "--out"]
    assert cli.main([*map(str, words), str(tmp_path / "a")]) == 3
    manifest = Artifact.open(tmp_path / "a.rejected").manifest
    (reason,) = manifest["gate"]["reasons"]
    assert reason == "the Edge TPU compiler leaves to the CPU: 1 MEAN (--allow-cpu accepts it)"
    assert manifest["lowering"]["lint"]["on_cpu"] == {} and manifest["lowering"]["compiler"]["differences"]
    assert "note: the compiler's log is not as predicted: ADD" in capsys.readouterr().out
    assert cli.main([*map(str, words), str(tmp_path / "b"), "--allow-cpu"]) == 0
    assert Artifact.open(tmp_path / "b").manifest["gate"]["passed"]


def test_a_missed_budget_falls_back_to_a_finer_precision(data, run, tmp_path, capsys):
    out = tmp_path / "artifact"
    arguments = ["export", run, "--target", "openvino", "--data", data, "--out", out, "--calibration", 16]
    file = tmp_path / "said.json"
    code = cli.main([*map(str, arguments), "--min-mask-agreement", "0.9999", "--json", str(file)])
    said = json.loads(file.read_text())
    assert [(one["precision"], one["ranges"], one["widening"]) for one in said["candidates"]][:7] == [
        ("int8", "mse", 0.0),
        ("int8", "mse", 0.25),
        ("int8", "mse", 0.6),
        ("int8", "minmax", 0.0),
        ("nncf", None, 0.0),
        ("mixed", "mse", 0.25),
        ("fp16", None, 0.0),
    ]
    assert code == 0 and said["precision"] in ("nncf", "mixed", "fp16", "fp32")
    assert not said["candidates"][0]["passed"]
    assert not (tmp_path / "artifact.rejected").exists()
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("FALLBACK: "))
    missed = "int8 (mse ranges) missed: " + "; ".join(said["candidates"][0]["reasons"])
    assert missed in told and told.endswith(f"shipped as {said['precision']}")
    # The report reads the same from the artifact.
    words = [
        "parity",
        out,
        "--reference",
        run,
        "--data",
        data,
        "--out",
        tmp_path / "p",
        "--max-flips",
        "none",
    ]
    assert cli.main(list(map(str, words))) in (0, 3)
    page = (tmp_path / "p" / "report.html").read_text()
    assert missed in page and "Candidates that export tried" in page


def test_all_candidates_are_measured_and_the_first_that_passes_is_the_artifact(data, run, tmp_path):
    words = ["export", run, "--target", "onnx", "--data", data, "--out", tmp_path / "a", "--calibration", 16]
    file = tmp_path / "said.json"
    asked = [
        *words,
        *LOOSE_MASKS,
        "--all-candidates",
        "--precision",
        "int8",
        "--precision",
        "fp32",
        "--json",
        file,
    ]
    assert cli.main(list(map(str, asked))) == 0
    said = json.loads(file.read_text())
    tried = [(one["precision"], one["ranges"], one["widening"], one["passed"]) for one in said["candidates"]]
    assert tried == [
        ("int8", "mse", 0.0, True),
        ("int8", "mse", 0.25, True),
        ("int8", "mse", 0.6, True),
        ("int8", "minmax", 0.0, True),
        ("fp32", None, 0.0, True),
    ]
    # Each grid was measured with its own file: the rows differ in how far the scores moved.
    rows = [one["row"]["score_max_abs_diff"] for one in said["candidates"]]
    assert len(set(rows)) == 5 and rows[4] < min(rows[:4])
    artifact = Artifact.open(tmp_path / "a")
    assert artifact.precision == "int8" and artifact.manifest["calibration"]["ranges"] == "mse"
    assert len(json.loads((tmp_path / "a" / "gate.json").read_text())["candidates"]) == 5


def test_full_precision_is_exported_by_a_process_that_never_quantized(data, run, tmp_path):
    """What int8 imports on its way must not be what fp32 silently needs."""
    words = [
        "export",
        run,
        "--target",
        "onnx",
        "--data",
        data,
        "--out",
        tmp_path / "a",
        "--precision",
        "fp32",
    ]
    command = [sys.executable, "-m", "edge.cli", *map(str, words), "--calibration", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Artifact.open(tmp_path / "a").precision == "fp32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--target": "toaster"}, "no target called"),
        ({"--profile": "toaster"}, "no device profile"),
        ({"--data": "nowhere"}, "not a data set"),
        ({"run": "nowhere"}, "no RUN folder"),
        ({"--calibration": "2"}, "calibration samples"),
    ],
)
def test_bad_input_is_one_message_exit_2_and_nothing_written(data, run, tmp_path, capsys, change, message):
    options = {"--target": "onnx", "--data": str(data), "--out": str(tmp_path / "a"), **change}
    source = options.pop("run", str(run))
    words = ["export", source, *(word for pair in options.items() for word in pair)]
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_artifact_is_not_overwritten(data, run, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    code = cli.main(
        ["export", str(run), "--target", "onnx", "--data", str(data), "--out", str(tmp_path / "a")]
    )
    assert code == 2
    assert "exists already" in capsys.readouterr().err


def test_an_image_of_val_among_the_calibration_images_is_refused(run, tmp_path, capsys):
    data = write_dataset(tmp_path / "set")
    samples = read_samples(data)
    val = next(sample for sample in samples if sample.split == "val")
    for sample in samples:
        if sample.split == "train" and not sample.defective:
            sample.image.write_bytes(val.image.read_bytes())
    code = cli.main(
        ["export", str(run), "--target", "onnx", "--data", str(data), "--out", str(tmp_path / "a")]
    )
    assert code == 2
    assert "took part in calibration" in capsys.readouterr().err
