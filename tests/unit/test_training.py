"""Training from end to end on a few small surfaces: learns, resumes, and leaves a RUN folder that opens."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from edge.errors import ArtifactError, FormatVersionError, InputError, ManifestError
from edge.images import read_image
from edge.inspector import Inspector
from edge.predictions import predict
from edge.preprocess import Framing
from quantize.cli import evaluate as evaluate_verb
from quantize.cli import train as train_verb
from quantize.data.dataset import open_dataset
from quantize.data.synthetic import write_surfaces
from quantize.evaluation import evaluate
from quantize.models.batch_norm import fold_batch_norm
from quantize.models.outputs import TrainingOutput
from quantize.models.pixel_only import POOLINGS, pool
from quantize.reference import TorchSession, open_run
from quantize.run import network_input
from quantize.run import open_run as read_run
from quantize.training import fit as fit_module
from quantize.training.balance import Balance, BalanceConfig
from quantize.training.config import TrainingConfig
from quantize.training.job import Job, train
from quantize.training.losses import LossConfig, Truth, dice_loss, task_losses
from quantize.training.processor import depthwise_backward_in_float32

CONFIG = TrainingConfig(
    epochs=3, epoch_tiles=0, batch_size=8, time_limit_min=0, accelerator="cpu", devices="1"
)


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    return write_surfaces(tmp_path_factory.mktemp("data") / "surfaces", count=72, size=32, seed=1)


def job(data, out, **config):
    return Job(
        data=data,
        out=out,
        model={"name": "sample-centric", "size": "nano"},
        input_size=(32, 32),
        framing=Framing("exact"),
        pretrained="",
        config=replace(CONFIG, **config),
    )


@pytest.fixture(scope="module")
def run(surfaces, tmp_path_factory):
    return train(job(surfaces, tmp_path_factory.mktemp("runs") / "first"))


def test_the_run_folder_says_everything(run, surfaces):
    facts = json.loads((run.run / "run.json").read_text())
    metrics = json.loads((run.run / "metrics.json").read_text())
    assert sorted(p.name for p in run.run.iterdir()) == ["metrics.json", "model.safetensors", "run.json"]
    assert facts["format"] == "edgeqc-run/1" and facts["name"] == "first"
    assert facts["model"] == {"channels": 1, "name": "sample-centric", "size": "nano"}
    assert facts["input"] == {"width": 32, "height": 32, "channels": 1}
    assert facts["data"]["digest"] == open_dataset(surfaces).digest
    assert facts["training"]["epochs_done"] == 3 and facts["training"]["pretrained"].startswith(
        "from scratch"
    )
    assert {"threshold", "rule", "miss_rate", "confidence", "n"} <= facts["decision"].keys()
    assert len(metrics["history"]) == 3 and metrics["val"]["n"] == facts["decision"]["n"]
    assert not run.run.with_name("first.partial").exists()


def test_the_thresholds_belong_to_the_scores_that_the_inspector_gives(run, surfaces):
    samples = open_dataset(surfaces).split("val")
    with open_run(run.run) as inspector:
        assert isinstance(inspector, Inspector)
        predictions = predict(inspector, samples)
        inspection = inspector.inspect(read_image(samples[0].image))
    metrics = evaluate(predictions, samples)
    recorded = json.loads((run.run / "metrics.json").read_text())["val"]
    assert metrics["sample"]["misses"] == recorded["sample"]["misses"]
    decision = json.loads((run.run / "run.json").read_text())["decision"]
    assert decision["miss_rate"] == pytest.approx(metrics["sample"]["misses"] / metrics["positives"])
    assert inspection.mask.shape == (32, 32) and inspection.mask.dtype == bool
    assert predictions.meta["ran_on"]["sdk"] == "torch" and predictions.meta["ran_on"]["device"] == "cpu"


def test_a_killed_training_goes_on_where_it_was(surfaces, tmp_path, monkeypatch, run):
    class Killed(BaseException):
        pass

    validate, calls = fit_module.validate, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return validate(*arguments)

    monkeypatch.setattr(fit_module, "validate", dies)
    with pytest.raises(Killed):
        train(job(surfaces, tmp_path / "killed"))
    assert not (tmp_path / "killed").exists() and (tmp_path / "killed.partial" / "state.pt").is_file()
    trained = []
    step = fit_module._Trainer._step
    monkeypatch.setattr(fit_module._Trainer, "_step", lambda *a: (trained.append(1), step(*a))[1])
    resumed = train(job(surfaces, tmp_path / "killed"))
    steps = len(trained)
    assert steps == len(open_dataset(surfaces).split("train")) // 8  # one epoch, not three
    assert not (tmp_path / "killed.partial").exists()
    # ... and ends where the uninterrupted training ended.
    one, other = (read_run(path.run).load_model().state_dict() for path in (resumed, run))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_options_do_not_resume(surfaces, tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "_line", dies)  # after the validation, before the first checkpoint
    with pytest.raises(KeyboardInterrupt):
        train(job(surfaces, tmp_path / "out"))
    assert not (tmp_path / "out.partial" / "state.pt").exists()  # nothing yet that other options would lose
    monkeypatch.undo()
    monkeypatch.setattr(fit_module.Checkpoint, "remove", lambda self: None)
    train(job(surfaces, tmp_path / "out", epochs=1))
    (tmp_path / "out").rename(tmp_path / "done")
    with pytest.raises(InputError, match="other settings") as error:
        train(job(surfaces, tmp_path / "out", epochs=2))
    assert "training.epochs=1" in error.value.wanted and "training.epochs=2" in error.value.got
    (tmp_path / "out.partial" / "state.pt").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read"):
        train(job(surfaces, tmp_path / "out", epochs=1))


def test_a_time_limit_ends_the_training_early(surfaces, tmp_path):
    short = train(job(surfaces, tmp_path / "short", epochs=1000, time_limit_min=0.02))
    facts = json.loads((short.run / "run.json").read_text())
    assert 1 <= facts["training"]["epochs_done"] < 100


def test_frozen_blocks_keep_their_weights(surfaces, tmp_path):
    from quantize.models import build

    source = build({"name": "sample-centric", "size": "nano", "channels": 3})
    torch.save(dict(source.encoder.state_dict().items()), tmp_path / "encoder.pth")
    asked = replace(
        job(surfaces, tmp_path / "run", epochs=1, frozen_blocks=2), pretrained=str(tmp_path / "encoder.pth")
    )
    model = read_run(train(asked).run).load_model()
    old, new = source.encoder.features[1].state_dict(), model.encoder.features[1].state_dict()
    learned = [
        name for name in old if name.endswith(("weight", "bias"))
    ]  # not the statistics, which are converted
    assert learned and all(torch.equal(old[name], new[name]) for name in learned)
    assert not torch.equal(
        source.encoder.features[4].conv[2].weight, model.encoder.features[4].conv[2].weight
    )


def test_data_without_one_class_is_refused_before_anything_is_written(surfaces, tmp_path):
    lines = (surfaces / "samples.csv").read_text().splitlines()
    only_good = [lines[0]] + [line for line in lines[1:] if ",0,val," in line or ",train," in line]
    for name in ("images", "masks"):
        (tmp_path / name).symlink_to(surfaces / name)
    (tmp_path / "samples.csv").write_text("\n".join(only_good))
    with pytest.raises(InputError, match="split val has only good samples"):
        train(job(tmp_path, tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_an_existing_run_is_not_overwritten(surfaces, run):
    with pytest.raises(InputError, match="exists already"):
        train(job(surfaces, run.run))


def test_folding_batch_norm_changes_nothing(run):
    model = read_run(run.run).load_model()
    folded = fold_batch_norm(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    x = torch.rand(1, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        for one, other in zip(model(x), folded(x)):
            assert torch.allclose(one, other, atol=1e-4)


def test_a_torch_session_is_a_session(run):
    spec = network_input(32, 32, 1)
    session = TorchSession(read_run(run.run).load_model(), spec)
    with pytest.raises(InputError):
        session.run({"input": np.zeros((1, 1, 16, 16), np.float32)})
    outputs = session.run({"input": np.zeros((1, 1, 32, 32), np.float32)})
    assert outputs["defect"].shape == (1, 1) and outputs["mask"].shape == (1, 1, 16, 16)
    session.close()
    session.close()


@pytest.mark.parametrize(
    ("break_it", "error"),
    [
        (lambda f: (f / "run.json").unlink(), ManifestError),
        (lambda f: (f / "run.json").write_text("{"), ManifestError),
        (lambda f: _edit(f, format="edgeqc-run/9"), FormatVersionError),
        (lambda f: _edit(f, decision={}), ManifestError),
        (lambda f: (f / "model.safetensors").unlink(), ArtifactError),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
            ArtifactError,
        ),
        (lambda f: _edit(f, model={"name": "sample-centric", "size": "small", "channels": 1}), ArtifactError),
    ],
)
def test_a_damaged_run_is_refused(run, tmp_path, break_it, error):
    import shutil

    copy = shutil.copytree(run.run, tmp_path / "copy")
    break_it(copy)
    with pytest.raises(error):
        open_run(copy)
    with pytest.raises(InputError, match="no RUN folder"):
        open_run(tmp_path / "nowhere")


def _edit(folder, **changes):
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | changes))


def parse(verb, *arguments):
    from argparse import ArgumentParser

    parser = ArgumentParser()
    verb.configure(parser)
    return parser.parse_args([str(a) for a in arguments])


def test_the_verbs_train_and_evaluate(surfaces, tmp_path):
    trained = train_verb.run(
        parse(
            train_verb,
            "--data",
            surfaces,
            "--out",
            tmp_path / "run",
            "--size",
            "nano",
            "--input-size",
            "32",
            "--epochs",
            1,
            "--batch-size",
            8,
            "--from-scratch",
            "--accelerator",
            "cpu",
            "--seed",
            3,
        )
    )
    assert trained.exit_code == 0 and trained.data["val"]["n"] > 0
    outcome = evaluate_verb.run(parse(evaluate_verb, tmp_path / "run", "--data", surfaces, "--split", "val"))
    assert outcome.data.keys() == {"n", "positives", "sample", "seg"}
    assert outcome.data["sample"].keys() == {
        "ap",
        "auroc",
        "recall",
        "precision",
        "f1",
        "misses",
        "false_alarms",
        "threshold",
    }
    assert outcome.data["seg"].keys() == {"seg_miou", "seg_recall", "miou", "mpa", "n", "empty_positives"}
    assert "AP" in outcome.text


@pytest.mark.parametrize(
    "wrong",
    [
        ("--epochs", "-1"),
        ("--input-size", "250"),
        ("--input-size", "x"),
        ("--size", "huge"),
        ("--time-limit-min", "-1"),
    ],
)
def test_bad_usage_is_exit_code_2(surfaces, tmp_path, wrong):
    with pytest.raises(SystemExit) as stop:
        parse(train_verb, "--data", surfaces, "--out", tmp_path / "run", *wrong)
    assert stop.value.code == 2


def test_dice_is_zero_when_right_and_near_one_when_wrong():
    target = torch.zeros(2, 1, 16, 16)
    target[:, :, 4:12, 4:12] = 1
    logits = (target * 2 - 1) * 50
    logits[1] = -logits[1]
    right, wrong = dice_loss(logits, target).tolist()
    assert right < 0.01 and wrong > 0.98


def truth(known=(1.0, 1.0), defective=(1.0, 1.0), center=0.0):
    target = torch.zeros(2, 1, 16, 16)
    target[:, :, 4:12, 4:12] = 1
    return Truth(torch.tensor(defective), target, target * center, torch.tensor(known))


def test_masks_that_are_not_known_teach_nothing():
    defect, mask = torch.zeros(2, 1), torch.randn(2, 1, 4, 4, requires_grad=True)
    losses, parts = task_losses(TrainingOutput(defect, mask), truth(known=(1.0, 0.0)), LossConfig())
    losses["mask"].backward()
    assert mask.grad[0].abs().sum() > 0 and mask.grad[1].abs().sum() == 0
    assert float(parts["sample"]) == pytest.approx(math.log(2), rel=1e-3)


def test_a_network_without_a_verdict_has_one_task():
    losses, _ = task_losses(TrainingOutput(None, torch.zeros(2, 1, 4, 4)), truth(), LossConfig())
    assert list(losses) == ["mask"]


def test_the_middle_of_a_defect_and_the_focus_weigh_more():
    mask = torch.zeros(2, 1, 4, 4)

    def bce(center=0.0, weight=1.0, focus=None):
        output = TrainingOutput(None, mask, focus=focus)
        return float(task_losses(output, truth(center=center), LossConfig(center=weight))[1]["mask_bce"])

    assert bce(1.0) == pytest.approx(math.log(2) * (1 + 64 / 256), rel=1e-5)
    assert bce(1.0, weight=0.0) == pytest.approx(bce(), rel=1e-6)
    assert bce(focus=torch.full((2, 1, 1, 1), 2.0)) == pytest.approx(3 * bce(), rel=1e-6)


def test_a_coarse_head_and_a_first_mask_join_the_mask_task():
    right = (truth().target * 2 - 1) * 20
    coarse_right = torch.full((2, 1, 2, 2), 20.0)

    def loss(first, coarse):
        output = TrainingOutput(None, right, first_mask=first, coarse=coarse)
        return float(task_losses(output, truth(), LossConfig())[0]["mask"])

    alone = loss(None, None)
    assert loss(right, coarse_right) == pytest.approx(alone, abs=0.02)
    assert loss(-right, coarse_right) > alone + 5 and loss(right, -coarse_right) > alone + 5


def test_focal_loss_forgets_what_is_right_already():
    output = TrainingOutput(torch.tensor([[4.0], [-1.0]]), torch.zeros(2, 1, 4, 4))
    plain, focal = (
        task_losses(output, truth(), LossConfig(focal=gamma, label_smoothing=0))[1]["sample"]
        for gamma in (0, 2)
    )
    easy, hard = (math.log1p(math.exp(-x)) for x in (4.0, -1.0))
    assert float(plain) == pytest.approx((easy + hard) / 2, rel=1e-5)
    forgotten = [(1 - 1 / (1 + math.exp(-x))) ** 2 for x in (4.0, -1.0)]
    assert float(focal) == pytest.approx((easy * forgotten[0] + hard * forgotten[1]) / 2, rel=1e-4)


class _TwoTasks(torch.nn.Module):
    """An encoder of one convolution under two losses whose gradients are ``ratio`` apart."""

    def __init__(self, ratio):
        super().__init__()
        self.encoder = torch.nn.Conv2d(1, 1, 1, bias=False)
        self.ratio = ratio

    def losses(self):
        y = self.encoder(torch.ones(1, 1, 2, 2)).mean()
        return {"mask": self.ratio * y + 1, "sample": y + 1}


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_gradnorm_holds_both_gradients_at_equal_norm(ratio):
    fabric, model = Fabric(accelerator="cpu", devices=1), _TwoTasks(ratio)
    balance = Balance(BalanceConfig(restoring=0.0))
    assert balance.due(0) and not balance.due(1)
    balance.observe(fabric, model, model.losses())
    weights = balance.weights
    assert weights["mask"] * ratio == pytest.approx(weights["sample"], rel=1e-4)
    assert sum(weights.values()) == pytest.approx(2)
    assert model.encoder.weight.grad is None  # looking at gradients must not add to them


def test_gradnorm_gives_more_to_the_task_that_lags():
    fabric, model = Fabric(accelerator="cpu", devices=1), _TwoTasks(1.0)
    balance = Balance(BalanceConfig(restoring=1.0, smoothing=0.0))
    losses = model.losses()
    balance.observe(fabric, model, losses)
    balance.observe(fabric, model, {**losses, "mask": losses["mask"] * 1 - losses["mask"].detach() / 2})
    assert balance.weights["sample"] > 1.2 > 0.8 > balance.weights["mask"]


def test_a_task_that_does_not_reach_the_encoder_leaves_the_weights():
    fabric, model = Fabric(accelerator="cpu", devices=1), _TwoTasks(3.0)
    balance = Balance(BalanceConfig())
    balance.observe(fabric, model, {**model.losses(), "sample": torch.ones((), requires_grad=True)})
    assert balance.weights == {"mask": 1.0, "sample": 1.0}


def test_the_linear_schedule_goes_from_mask_to_verdict():
    balance = Balance(BalanceConfig(kind="linear"))
    seen = []
    for done in (0.0, 0.5, 1.0):
        balance.advance(done)
        seen.append((balance.weights["mask"], balance.weights["sample"]))
    assert seen == [(2, 0), (1, 1), (0, 2)] and not balance.due(0)
    assert float(balance.total({"mask": torch.tensor(5.0), "sample": torch.tensor(3.0)})) == 6.0


def test_the_baseline_learns_no_verdict_and_chooses_its_pooling_on_val(surfaces, tmp_path):
    model = {"name": "pixel-only", "size": "nano"}
    trained = train(replace(job(surfaces, tmp_path / "pixels", epochs=1), model=model))
    facts = json.loads((trained.run / "run.json").read_text())
    assert facts["model"]["pooling"] in POOLINGS
    history = json.loads((trained.run / "metrics.json").read_text())["history"]
    assert "loss_mask_bce" in history[0] and "loss_sample" not in history[0]
    assert read_run(trained.run).load_model().pooling == facts["model"]["pooling"]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_a_mask(pooling):
    mask = torch.full((1, 1, 32, 32), -4.0)
    mask[0, 0, 3, 5] = 8.0
    speck = float(pool(mask, pooling))
    mask[0, 0, 16:, 16:] = 2.0
    assert float(pool(mask, pooling)) == pytest.approx(
        {"max": 8.0, "mean": (767 * -4 + 256 * 2 + 8) / 1024}.get(pooling, 2.0)
    )
    assert speck <= 8.0


@pytest.mark.parametrize(
    "form",
    [{"dilation": 2}, {"padding": "same"}, {"padding_mode": "reflect", "padding": 1}, {"padding": 1}],
    ids=str,
)
def test_a_depthwise_convolution_of_any_form_computes_the_same_while_it_is_made_fast(form):
    torch.manual_seed(0)
    conv = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4, bias=False, **form))
    x = torch.randn(2, 4, 12, 12)
    before = conv(x)
    with depthwise_backward_in_float32(conv):
        torch.testing.assert_close(conv(x), before)
