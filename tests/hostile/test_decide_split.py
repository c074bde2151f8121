"""Split ``decide`` from ``train`` to the manifest: what it promises, when it refuses, and that nothing else uses it."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files

import pytest

pytest.importorskip("torch", reason="the training side needs torch")

from edge import cli
from edge.samples import dataset_digest, read_samples
from quantize.guarantee import smallest_rate
from tiny_run import write_dataset

SMALL = ("--size", "nano", "--input-size", "32", "--framing", "resize", "--epochs", "1", "--batch-size", "8")
# Under a time limit the schedule depends on the clock, and equal trainings come out a little different.
SMALL = (*SMALL, "--time-limit-min", "0")
PARTS = 9  # defective ones in split decide


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = write_dataset(tmp_path_factory.mktemp("decide") / "data", count=135)
    move(folder, "test", "decide")
    return folder


def move(folder, split, other):
    table = folder / "samples.csv"
    table.write_text(table.read_text().replace(f",{split},", f",{other},"))


def train(data, out, *options):
    return cli.main(["train", "--data", str(data), "--out", str(out), *SMALL, "--from-scratch", *options])


@pytest.fixture(scope="module")
def run(sound, tmp_path_factory):
    out = tmp_path_factory.mktemp("decide-runs") / "run"
    assert train(sound, out) == 0
    return out


def decision_of(run):
    return json.loads((run / "run.json").read_text())["decision"]


def test_a_run_records_what_decide_says(sound, run):
    known = decision_of(run)["guarantee"]
    assert known["parts"] == PARTS and known["method"] == "clopper-pearson"
    assert known["samples_digest"] == dataset_digest(read_samples(sound, "decide"))
    assert known["miss_rate_upper"] >= smallest_rate(PARTS)


def test_decide_changes_neither_weights_nor_threshold(sound, run, tmp_path):
    data = shutil.copytree(sound, tmp_path / "data")
    lines = (data / "samples.csv").read_text().splitlines(keepends=True)
    (data / "samples.csv").write_text("".join(line for line in lines if ",decide," not in line))
    assert train(data, tmp_path / "run") == 0
    decision = decision_of(tmp_path / "run")
    assert decision["threshold"] == decision_of(run)["threshold"]
    assert decision["guarantee"] is None and "`decide`" in decision["guarantee_reason"]
    weights = "model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (run / weights).read_bytes()


def test_a_rate_that_the_parts_cannot_support_is_code_3_before_training(sound, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(sound, out, "--rule", "risk", "--max-miss-rate", "0.05") == 3
    message = capsys.readouterr().err
    assert "59 defective parts" in message and f"{PARTS} defective parts" in message
    assert "epoch" not in message and "Traceback" not in message and not list(tmp_path.iterdir())


def test_a_rate_that_the_scores_do_not_support_keeps_the_training(sound, tmp_path, capsys, monkeypatch):
    import quantize.training.thresholds as thresholds

    data, out = shutil.copytree(sound, tmp_path / "data"), tmp_path / "out"
    honest = thresholds._run

    def blind(session, spec, framing, sample):  # a network that misses every defect of split decide
        score, *rest = honest(session, spec, framing, sample)
        return (-99.0 if sample.split == "decide" else score), *rest

    asked = ("--rule", "risk", "--max-miss-rate", "0.5")
    with monkeypatch.context() as patch:
        patch.setattr(thresholds, "_run", blind)
        assert train(data, out, *asked) == 3
    message = capsys.readouterr().err
    assert f"{PARTS} missed at the safest threshold" in message and "without training" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.partial"]

    # More parts to decide by are no other training, and neither is another rule.
    image = (data / "images" / "000.pgm").read_bytes()
    (data / "images" / "new.pgm").write_bytes(image[:-1] + bytes([image[-1] ^ 1]))
    with (data / "samples.csv").open("a") as table:
        table.write("images/new.pgm,,1,decide,part-new,dark\n")
    assert train(data, out, "--rule", "fixed", "--threshold", "-50") == 0
    said = capsys.readouterr()
    assert "epoch 1/1:" not in said.err and "of defective parts missed" in said.out
    decision = decision_of(out)
    assert decision["threshold"] == -50 and decision["guarantee"]["parts"] == PARTS + 1
    assert decision["guarantee"]["misses"] == 0 and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--rule", "risk"), "--max-miss-rate"),
        (("--max-miss-rate", "0.1"), "--rule risk"),
        (("--threshold", "0.1"), "--rule fixed"),
        (("--rule", "risk", "--max-miss-rate", "5"), "below 1"),
    ],
)
def test_options_that_contradict_each_other_are_code_2(sound, tmp_path, capsys, options, named):
    assert train(sound, tmp_path / "out", *options) == 2
    assert named in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_copy_of_a_kept_photograph_is_refused_before_training(sound, tmp_path, capsys):
    data = shutil.copytree(sound, tmp_path / "data")
    rows = read_samples(data)
    kept = next(sample for sample in rows if sample.split == "decide" and sample.defective)
    train_one = next(sample for sample in rows if sample.split == "train")
    shutil.copyfile(train_one.image, kept.image)
    if kept.mask is not None:
        shutil.copyfile(train_one.mask or kept.mask, kept.mask)
    assert train(data, tmp_path / "out") == 2
    assert "twice" in capsys.readouterr().err and not list(tmp_path.glob("out*"))


def test_gates_and_calibration_refuse_decide(sound, run, tmp_path, capsys):
    calibration = pytest.importorskip("targets.calibration")
    from edge.errors import InputError

    with pytest.raises(InputError, match="kept for the guarantee"):
        calibration.choose(read_samples(sound, "decide"), 8)
    report = tmp_path / "report"
    asked = ["parity", str(run), "--reference", str(run), "--data", str(sound), "--out", str(report)]
    assert cli.main([*asked, "--split", "decide"]) == 2
    assert "kept for the guarantee" in capsys.readouterr().err and not report.exists()


def test_the_manifest_carries_the_guarantee(sound, run, tmp_path):
    pytest.importorskip("onnxruntime")
    jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked with jsonschema")
    # An older RUN says nothing of a guarantee.
    older = shutil.copytree(run, tmp_path / "older")
    facts = json.loads((older / "run.json").read_text())
    del facts["decision"]["guarantee"], facts["decision"]["guarantee_reason"]
    (older / "run.json").write_text(json.dumps(facts))
    for folder in (run, older):
        out = tmp_path / f"artifact-{folder.name}"
        options = ["--target", "onnx", "--precision", "fp32", "--data", str(sound), "--out", str(out)]
        assert cli.main(["export", str(folder), *options]) == 0
        manifest = json.loads((out / "manifest.json").read_text())
        jsonschema.validate(manifest, json.loads((files("edge") / "manifest.schema.json").read_text()))
        decision = manifest["decision"]
        assert decision["guarantee"] == decision_of(folder).get("guarantee")
        assert (decision["guarantee"] is None) == isinstance(decision["guarantee_reason"], str)
