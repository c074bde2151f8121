"""`edgeqc sensitivity` through the command line, and precision `mixed` of `edgeqc export`."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from tiny_run import NO_BUDGET, write_dataset, write_run_folder

pytest.importorskip("torch", reason="measuring layers needs the toolkit")

from edge import cli
from edge.artifact import Artifact
from edge.samples import read_samples
from quantize.errors import CalibrationError
from targets.sensitivity import choose


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run_folder(tmp_path_factory.mktemp("run") / "run", threshold=-1000.0)


def test_the_verb_ranks_every_layer_and_draws_the_worst(data, run, tmp_path, capsys):
    out = tmp_path / "layers"
    words = ["sensitivity", run, "--data", data, "--images", 8, "--out", out]
    assert cli.main([*map(str, words), "--json"]) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert said == json.loads((out / "sensitivity.json").read_text())
    damages = [layer["damage"] for layer in said["layers"]]
    assert damages == sorted(damages, reverse=True) and sum(damages) == pytest.approx(1)
    assert said["n"] == said["positives"] == 8  # at this threshold everything is defective
    assert said["mixed"]["int8_mac_share"] >= 0.9 and said["mixed"]["layers"]
    assert {"weights", "activation", "whole", "sqnr_db", "macs", "mac_share"} <= set(said["layers"][0])
    worst = said["layers"][0]["name"]
    assert worst in printed.err and "all layers together" in printed.err
    picture = (out / "sensitivity.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg") and worst in picture
    assert cli.main(list(map(str, words))) == 2  # the folder is there


def test_the_report_shows_the_ranking_of_its_own_reference_alone(data, run, tmp_path, capsys):
    layers, other = tmp_path / "layers", write_run_folder(tmp_path / "other", threshold=0.5)
    assert cli.main(list(map(str, ["sensitivity", run, "--data", data, "--images", 8, "--out", layers]))) == 0
    words = ["parity", run, "--data", data, "--split", "val", "--sensitivity"]

    def parity(folder, reference, out):
        return cli.main(list(map(str, [*words, folder, "--reference", reference, "--out", tmp_path / out])))

    assert parity(layers, run, "p") == 0
    page = (tmp_path / "p" / "report.html").read_text()
    worst = json.loads((layers / "sensitivity.json").read_text())["layers"][0]["name"]
    assert "Which layers int8 hurts" in page and worst in page and "data:image/svg+xml;base64," in page
    facts = json.loads((layers / "sensitivity.json").read_text())
    (layers / "sensitivity.json").write_text(json.dumps(facts | {"checkpoint_digest": "0" * 64}))
    capsys.readouterr()
    assert parity(layers, run, "q") == 2
    assert "another RUN" in capsys.readouterr().err and not (tmp_path / "q").exists()
    assert parity(other, run, "r") == 2
    assert "no ranking of layers" in capsys.readouterr().err
    assert cli.main(list(map(str, [*words, layers, "--layers"]))) == 2
    assert "--sensitivity" in capsys.readouterr().err


def test_too_few_photographs_are_bad_input(data, run, capsys):
    assert cli.main(["sensitivity", str(run), "--data", str(data), "--images", "4"]) == 2
    assert "at least 8 samples" in capsys.readouterr().err


def test_no_part_sets_ranges_and_is_measured_on(data):
    samples = read_samples(data)
    measured, calibrated = choose(samples, 12, seed=0)
    assert len(measured) == 12 and sum(sample.defective for sample in measured) == 6
    assert {sample.split for sample in (*measured, *calibrated)} == {"train"}
    assert not {sample.group for sample in measured} & {sample.group for sample in calibrated}
    with pytest.raises(CalibrationError):
        choose([sample for sample in samples if not sample.defective], 12, seed=0)


@pytest.mark.parametrize("target", ["openvino", "onnx"])
def test_a_mixed_artifact_says_so_and_passes_its_self_test(data, run, tmp_path, target):
    pytest.importorskip("openvino" if target == "openvino" else "onnxruntime")
    out = tmp_path / "a"
    words = ["export", run, "--target", target, "--data", data, "--out", out, "--calibration", 16, *NO_BUDGET]
    assert cli.main([*map(str, words), "--precision", "mixed"]) == 0
    artifact = Artifact.open(out)
    assert artifact.precision == "mixed"
    lowering = artifact.manifest["lowering"]
    assert lowering["float_layers"] and lowering["int8_mac_share"] >= 0.9
    assert cli.main(["selftest", str(out)]) == 0


def test_the_edge_tpu_refuses_mixed(data, run, tmp_path, capsys):
    words = [
        "export",
        run,
        "--target",
        "edgetpu",
        "--data",
        data,
        "--out",
        tmp_path / "a",
        "--calibration",
        16,
    ]
    assert cli.main([*map(str, words), "--precision", "mixed"]) == 2
    assert "mixed" in capsys.readouterr().err
