"""What must not slip through between the runtime and the host verbs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tiny_run import LOOSE_MASKS, write_dataset, write_run_folder

pytest.importorskip("torch", reason="needs the toolkit")

from edge import cli
from edge.artifact import MANIFEST, read_manifest, write_manifest
from edge.errors import IncompatibleArtifactError, InferenceError, ManifestError
from edge.inspector import open_inspector


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run_folder(tmp_path_factory.mktemp("run") / "run", threshold=-1000.0)


def rewritten(folder, **changes):
    """The artifact in `folder` with changed manifest fields, its digests right again."""
    facts = {
        k: v for k, v in read_manifest(folder).items() if k not in ("format", "files", "manifest_sha256")
    }
    (folder / MANIFEST).unlink()
    return write_manifest(folder, {**facts, **changes})


@pytest.fixture
def edgetpu(data, run, tmp_path):
    out = tmp_path / "edgetpu"
    words = [
        "export",
        run,
        "--target",
        "edgetpu",
        "--data",
        data,
        "--out",
        out,
        "--calibration",
        16,
        *LOOSE_MASKS,
    ]
    assert cli.main(list(map(str, words))) == 0
    return out


def test_a_rejected_artifact_fails_parity_through_its_prediction_file_too(edgetpu, data, run, tmp_path):
    gate = {**read_manifest(edgetpu)["gate"], "passed": False, "reasons": ["a test says so"]}
    rewritten(edgetpu, gate=gate)
    file = tmp_path / "p.npz"
    words = ["predict", edgetpu, "--data", data, "--split", "test", "--out", file, "--stand-in"]
    assert cli.main(list(map(str, words))) == 0
    words = ["parity", file, "--reference", run, "--data", data, "--out", tmp_path / "parity"]
    assert cli.main(list(map(str, words))) == 3
    (row,) = json.loads((tmp_path / "parity" / "parity.json").read_text())["artifacts"]
    assert any("a test says so" in reason for reason in row["reasons"])


def test_without_a_device_in_the_manifest_the_stand_in_is_still_only_for_those_who_ask(edgetpu):
    rewritten(edgetpu, device=None)
    with pytest.raises(IncompatibleArtifactError, match="only its stand-in"):
        open_inspector(edgetpu)
    with open_inspector(edgetpu, stand_in=True) as inspector:
        assert inspector.session.ran_on.stand_in


def test_a_stand_in_may_only_name_a_file_that_the_manifest_lists(edgetpu, tmp_path):
    (tmp_path / "outside.tflite").write_bytes((edgetpu / "model.tflite").read_bytes())
    stand_in = {"backend": "litert", "device": "cpu", "model": "../outside.tflite"}
    with pytest.raises(ManifestError, match="stand-in's model"):
        rewritten(edgetpu, stand_in=stand_in)


@pytest.mark.parametrize("broken", ["defect", "mask"])
def test_a_logit_that_is_not_a_number_is_an_error_not_a_verdict(run, broken, monkeypatch):
    with open_inspector(run) as inspector:
        answer = inspector.session._run

        def spoiled(feeds):
            outputs = {name: array.copy() for name, array in answer(feeds).items()}
            outputs[broken].reshape(-1)[0] = math.nan
            return outputs

        monkeypatch.setattr(inspector.session, "_run", spoiled)
        with pytest.raises(InferenceError, match="not a number"):
            inspector.inspect(np.full((40, 40), 128, np.uint8))


def test_scores_that_are_no_list_are_an_unreadable_prediction_file(run, data, tmp_path, capsys):
    file = tmp_path / "p.npz"
    words = ["predict", run, "--data", data, "--split", "test", "--out", file]
    assert cli.main(list(map(str, words))) == 0
    with np.load(file, allow_pickle=False) as members:
        changed = {**members, "defect_logit": members["defect_logit"][:, None]}
    np.savez(file, **changed)
    words = ["parity", file, "--reference", run, "--data", data, "--out", tmp_path / "parity"]
    assert cli.main(list(map(str, words))) == 2
    assert "not a readable prediction file" in capsys.readouterr().err
