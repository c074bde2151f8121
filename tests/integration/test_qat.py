"""`edgeqc train --qat`: tune the grid of a RUN, resume it, export it, and refuse what has no use."""

from __future__ import annotations

import json

import pytest

from tiny_run import LOOSE_MASKS, write_dataset, write_run_folder

torch = pytest.importorskip("torch", reason="tuning needs the toolkit")
pytest.importorskip("torchao")

from edge import cli  # noqa: E402
from edge.artifact import Artifact  # noqa: E402
from edge.errors import ArtifactError, FormatVersionError  # noqa: E402
from quantize import qat_job  # noqa: E402
from quantize.grid import calibrate  # noqa: E402
from quantize.models.batch_norm import fold_batch_norm  # noqa: E402
from quantize.qat import Thresholds, distillation_loss, with_fake_quant  # noqa: E402
from quantize.qat_job import QatConfig, train_qat  # noqa: E402
from quantize.run import open_run  # noqa: E402
from quantize.tuned_grid import load_grid  # noqa: E402

CONFIG = QatConfig(epochs=2, epoch_tiles=0, batch_size=4, time_limit_min=0, accelerator="cpu", widening=0.05)
SHAPE = (1, 32, 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_run_folder(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, data, source):
    out = tmp_path_factory.mktemp("tuned") / "run"
    return train_qat(source, data, out, CONFIG)


def test_the_reference_stays_and_the_grid_comes_nearer(tuned, source):
    before, after = open_run(source), open_run(tuned.run)
    assert after.digest == before.digest and after.tuned_grid and not before.tuned_grid
    assert after.decision == before.decision
    assert tuned.after < tuned.before
    history = after.facts["qat"]["history"]
    assert min(row["val_distance"] for row in history) == tuned.after and len(history) == 3


def test_the_saved_grid_answers_as_the_trained_graph(tuned):
    """Off by a rounding in float at most: the same integers."""
    run = open_run(tuned.run)
    grid = load_grid(run.tuned_grid, fold_batch_norm(run.load_model()), SHAPE)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, *SHAPE), generator=generator).sub(128).div(128)
    fake = with_fake_quant(grid.prepared)
    with torch.no_grad():
        for image in images.split(1):
            for trained, saved, step in zip(fake(image), grid.folded(image), grid.output_scales()):
                assert float((trained - saved).abs().max()) <= 1.01 * step


@pytest.mark.parametrize("target", ["onnx", "edgetpu"])
def test_every_target_lowers_the_tuned_integers(tuned, data, tmp_path, target):
    words = ["export", tuned.run, "--target", target, "--data", data, "--out", tmp_path / "a", *LOOSE_MASKS]
    assert cli.main([*map(str, words), "--calibration", "16", "--max-flips", "0.1"]) == 0
    assert Artifact.open(tmp_path / "a").precision == "int8"


def test_an_interrupted_tuning_goes_on_to_the_same_end(tuned, source, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    real, calls = qat_job.Checkpoint.save, []

    def save_once(self, state):
        real(self, state)
        calls.append(state)
        raise KeyboardInterrupt

    monkeypatch.setattr(qat_job.Checkpoint, "save", save_once)
    with pytest.raises(KeyboardInterrupt):
        train_qat(source, data, out, CONFIG)
    assert not out.exists() and len(calls) == 1
    monkeypatch.undo()
    again = train_qat(source, data, out, CONFIG)
    assert again.before == pytest.approx(tuned.before) and again.after == pytest.approx(tuned.after)
    assert not out.with_name("run.partial").exists()


def test_a_damaged_or_foreign_grid_is_named(tuned, tmp_path):
    run = open_run(tuned.run)
    network = fold_batch_norm(run.load_model())
    damaged = tmp_path / "grid.safetensors"
    damaged.write_bytes(run.tuned_grid.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_grid(damaged, network, SHAPE)
    with pytest.raises(ArtifactError, match="does not fit"):
        load_grid(run.tuned_grid, torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), SHAPE)


def test_a_grid_of_an_older_version_is_not_read_with_other_zero_points(tuned, tmp_path):
    from safetensors.torch import load_file, save_file

    run, older = open_run(tuned.run), tmp_path / "grid.safetensors"
    save_file(load_file(run.tuned_grid), older, {"torch": torch.__version__, "count": "16"})
    with pytest.raises(FormatVersionError, match="another version"):
        load_grid(older, fold_batch_norm(run.load_model()), SHAPE)


@pytest.mark.parametrize(
    "words", [["--weak"], ["--pretrained", "x"], ["--balance", "fixed"], ["--channels", "1"]]
)
def test_options_without_a_use_are_refused(source, data, tmp_path, capsys, words):
    asked = ["train", "--qat", source, "--data", data, "--out", tmp_path / "out", *words]
    assert cli.main(list(map(str, asked))) == 2
    assert words[0] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_is_tuned_is_not_tuned_again(tuned, data, tmp_path, capsys):
    words = ["train", "--qat", tuned.run, "--data", data, "--out", tmp_path / "out"]
    assert cli.main(list(map(str, words))) == 2
    assert "tuned already" in capsys.readouterr().err


def test_the_verb_says_how_near_it_came(source, data, tmp_path):
    said = tmp_path / "said.json"
    words = ["train", "--qat", source, "--data", data, "--out", tmp_path / "out", "--epochs", 1]
    words += ["--batch-size", 4, "--time-limit-min", 0, "--accelerator", "cpu", "--json", said]
    assert cli.main(list(map(str, words))) == 0
    distance = json.loads(said.read_text())["val_distance"]
    assert 0 < distance["after"] <= distance["before"]


def test_an_answer_near_the_threshold_counts_most():
    thresholds = Thresholds(0.0, 0.0)
    flat = torch.zeros(1, 1, 2, 2)

    def verdict(logit):
        teacher = torch.tensor([[logit]]), flat
        return float(distillation_loss((teacher[0] + 0.1, flat), teacher, thresholds))

    def pixel(logit):
        teacher = torch.zeros(1, 1), torch.tensor([[[[logit, 0.0], [0.0, 0.0]]]])
        moved = teacher[1].clone()
        moved[0, 0, 0, 0] += 0.1
        return float(distillation_loss((teacher[0], moved), teacher, thresholds))

    assert verdict(0.0) > 2 * verdict(4.0) > 0
    assert pixel(0.0) > 2 * pixel(6.0) > 0


def test_gradients_reach_every_weight_through_the_rounding(source):
    run = open_run(source)
    network = fold_batch_norm(run.load_model())
    images = torch.rand(4, *SHAPE).mul(2).sub(1)
    student = with_fake_quant(calibrate(network, [images], input_shape=SHAPE).prepared)
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    defect, mask = student(images[:1])
    (defect.sum() + mask.sum()).backward()
    missing = [name for name, value in student.named_parameters() if value.grad is None]
    assert not missing
