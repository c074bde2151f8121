"""`edgeqc export` and `edgeqc parity` through the command line, on a small network with random weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from runs import write_dataset, write_run_folder

pytest.importorskip("torch", reason="exporting needs the toolkit")

from edge import cli
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
    from edge import golden

    folder = exported[0] / target
    with open_inspector(folder, stand_in=True) as inspector:
        checks = golden.check(inspector, folder, inspector_facts(folder))
    assert checks and all(check.passed and check.bytes_equal for check in checks)


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
    assert "rejected" in capsys.readouterr().out


def test_a_missed_budget_falls_back_to_a_finer_precision(data, run, tmp_path):
    out = tmp_path / "artifact"
    arguments = ["export", run, "--target", "openvino", "--data", data, "--out", out, "--calibration", 16]
    file = tmp_path / "said.json"
    code = cli.main([*map(str, arguments), "--min-mask-agreement", "0.9999", "--json", str(file)])
    said = json.loads(file.read_text())
    assert [candidate["precision"] for candidate in said["candidates"]][:2] == ["int8", "fp16"]
    assert code == 0 and said["precision"] in ("fp16", "fp32")
    assert not said["candidates"][0]["passed"]
    assert not (tmp_path / "artifact.rejected").exists()


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
