"""``edgeqc train`` from end to end: data, network, pretrained encoder, fit, thresholds, RUN folder."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge.errors import InputError
from edge.folders import new_folder, refuse_existing, sha256, write_json
from edge.predictions import predict
from edge.preprocess import Framing, InputSpec
from edge.progress import step
from edge.samples import DECIDE, dataset_digest
from quantize.data.dataset import Dataset, open_dataset
from quantize.data.framed import FramedSet, frame_samples
from quantize.data.sizing import InputChoice, choose_input
from quantize.decision import DecisionRule, check_decidable
from quantize.evaluation import evaluate
from quantize.models import build, own
from quantize.models.pixel_only import PixelOnly
from quantize.pretrained import find_pretrained, initialise_encoder
from quantize.reference import TorchSession, open_run
from quantize.run import METRICS, network_input, write_run
from quantize.training.augmentation import centered
from quantize.training.balance import has_encoder
from quantize.training.checkpoint import Checkpoint
from quantize.training.config import TrainingConfig
from quantize.training.fit import Fitted, fit, make_fabric
from quantize.training.pooling import choose_pooling
from quantize.training.thresholds import Thresholds, choose_thresholds

LABELS = ("good", "defective")
STATISTICS_TILES = 96


@dataclass(frozen=True)
class Job:
    """What to train on what.

    ``model`` goes to ``quantize.models.build``; its ``channels`` are taken from the data where it names none.
    ``input_size`` is (width, height); it and ``framing`` are chosen from the data where they are None
    (``quantize.data.sizing``). ``pretrained`` is a file or folder, None looks in the usual places, and
    an empty string asks for training from scratch. ``weights`` fill a network of the user's own
    (``quantize.models.own``), and with 0 epochs they stay as they are. ``decision`` does not touch the training: an
    unfinished one goes on under another rule.

    Raises ``InputError`` if these contradict each other.
    """

    data: Path
    out: Path
    model: dict[str, Any]
    input_size: tuple[int, int] | None = None
    framing: Framing | None = None
    pretrained: str | None = None
    config: TrainingConfig = field(default_factory=TrainingConfig)
    decision: DecisionRule = field(default_factory=DecisionRule)
    weights: Path | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and not self.is_own:
            raise InputError(
                "--weights are of a network of your own",
                wanted=f"--model {own.FORM}",
                got=self.model.get("name"),
                next_step="edgeqc's own networks start from an encoder: --pretrained",
            )
        if self.pretrained and self.is_own:
            raise InputError(
                "--pretrained is for the encoder of edgeqc's networks",
                next_step="fill your own network with --weights, or load them in its function",
            )
        if self.config.epochs == 0 and self.weights is None:
            raise InputError(
                "with 0 epochs nothing is learned",
                wanted=f"a network that has learned already: --model {own.FORM} --weights FILE",
                got=f"model {self.model.get('name')} without --weights",
                next_step="give weights, or more epochs",
            )

    @property
    def is_own(self) -> bool:
        return own.is_own(str(self.model.get("name", "")))


@dataclass(frozen=True)
class Trained:
    """The RUN folder, its metrics on ``val`` and its decision as ``run.json`` has it."""

    run: Path
    metrics: dict[str, Any]
    pretrained: str
    seconds: float
    decision: dict[str, Any]


def train(job: Job) -> Trained:
    """Train, choose the thresholds and write the RUN folder; or go on with an interrupted training.

    Raises ``InputError`` before anything is written if the data or the options cannot be used, and
    ``GuaranteeError`` if split ``decide`` does not support the miss rate that was asked for: before the training
    where its size says so, after it where the scores do, and then the training is kept to go on from.
    """
    refuse_existing(job.out)
    fabric = make_fabric(job.config)
    dataset = open_dataset(job.data)
    for finding in dataset.findings:
        print(f"warning: {finding}", file=sys.stderr)
    held_out = check_decidable(job.decision, dataset.samples)
    model_config = {"channels": dataset.channels, **job.model}
    choice = choose_input(dataset, job.input_size, job.framing)
    print(choice.explanation, file=sys.stderr)
    job = replace(job, input_size=choice.size, framing=choice.framing)
    spec = network_input(*choice.size, int(model_config["channels"]))
    train_set = _learnable(frame_samples(dataset.split("train"), spec, job.framing), "train")
    val_samples = dataset.split("val")
    val_set = _learnable(frame_samples(val_samples, spec, job.framing), "val")
    fabric.launch()
    fabric.seed_everything(job.config.seed, verbose=False)
    model = build(model_config)
    pretrained = "from scratch, as asked for"
    encoder = None
    if job.is_own:
        job, pretrained = _start_own(job, model, spec)
    elif job.pretrained != "":
        encoder, pretrained = find_pretrained(model, job.pretrained)
    if fabric.is_global_zero:
        print(pretrained, file=sys.stderr)
    settings = {
        "model": model_config,
        "input": asdict(spec),
        "framing": asdict(job.framing),
        "data": _training_digest(dataset),
        "pretrained": pretrained if job.is_own else str(encoder.path) if encoder else None,
        "training": job.config.as_dict(),
    }
    checkpoint = Checkpoint(job.out, settings)
    if encoder is not None and not checkpoint.check():
        with step("reading the pretrained encoder"):
            initialise_encoder(model, encoder, _statistics_images(train_set, job.config.seed))
    fitted = fit(
        fabric, model, train_set, val_set, job.config, pretrained=encoder is not None, checkpoint=checkpoint
    )
    metrics: dict[str, Any] = {}
    decision: dict[str, Any] = {}
    if fabric.is_global_zero:
        model.to("cpu").load_state_dict(fitted.state)
        if isinstance(model, PixelOnly):
            model_config["pooling"] = choose_pooling(model, val_set)
            model.set_pooling(model_config["pooling"])
        with TorchSession(model, spec) as session:
            thresholds = choose_thresholds(session, spec, job.framing, val_samples, held_out, job.decision)
        decision = thresholds.decision.as_dict()
        facts = _facts(job, choice, dataset, model_config, thresholds, fitted, pretrained)
        with new_folder(job.out) as staging:
            write_run(staging, fitted.state, facts, {})
            with open_run(staging) as inspector:
                predictions = predict(inspector, val_samples, what="measuring on val")
            metrics = evaluate(predictions, val_samples)
            write_json(
                staging / METRICS,
                {"val": metrics, "mask_iou": thresholds.mask_iou, "history": fitted.progress.history},
            )
        checkpoint.remove()
    fabric.barrier()
    return Trained(job.out, metrics, pretrained, fitted.progress.seconds, decision)


def _start_own(job: Job, model: nn.Module, spec: InputSpec) -> tuple[Job, str]:
    """Fill and check a network of the user's own; the job as it suits it, and where its weights came from."""
    config = job.config
    start = f"{job.model['name']}, from scratch"
    if job.weights is not None:
        own.load_weights(model, job.weights)
        start = f"{job.model['name']}, weights from {job.weights} (sha256 {sha256(job.weights)[:12]})"
        config = replace(config, rate=config.encoder_rate)  # what has learned already learns slowly
    with step("checking the network"):
        own.check(model, (spec.channels, spec.height, spec.width))
    if config.epochs and config.balance.kind == "gradnorm" and not has_encoder(model):
        # Said in run.json too: without a part that both tasks share there are no gradients to hold equal.
        config = replace(config, balance=replace(config.balance, kind="fixed"))
        start += "; it has no part called encoder, so verdict and mask count the same"
    return replace(job, config=config), start


def _training_digest(dataset: Dataset) -> str:
    """Digest of what the weights depend on: more parts in split ``decide`` need no new training."""
    used = [sample for sample in dataset.samples if sample.split != DECIDE]
    return dataset.digest if len(used) == len(dataset.samples) else dataset_digest(used)


def _learnable(framed: FramedSet, split: str) -> FramedSet:
    if not framed.defective.any() or framed.defective.all():
        raise InputError(
            f"split {split} has only {'defective' if framed.defective.any() else 'good'} samples",
            wanted="good and defective ones: the network learns to tell them apart",
        )
    return framed


def _statistics_images(framed: FramedSet, seed: int) -> Iterator[Tensor]:
    """A few batches of training tiles as inputs, for the statistics of a re-opened batch norm."""
    order = torch.randperm(len(framed), generator=torch.Generator().manual_seed(seed))[:STATISTICS_TILES]
    for part in order.split(16):
        yield centered(framed.tiles[part])


def _facts(
    job: Job,
    choice: InputChoice,
    dataset: Dataset,
    model_config: dict[str, Any],
    thresholds: Thresholds,
    fitted: Fitted,
    pretrained: str,
) -> dict[str, Any]:
    """Everything in ``run.json`` but its format."""
    width, height = choice.size
    decision = thresholds.decision.as_dict()
    return {
        "name": job.out.name,
        "model": model_config,
        "input": {"width": width, "height": height, "channels": model_config["channels"]},
        "framing": asdict(choice.framing),
        "input_reason": choice.explanation,
        "labels": list(LABELS),
        "decision": decision,
        "mask_threshold": thresholds.mask_threshold,
        "data": dataset.summary(),
        "training": {
            **job.config.as_dict(),
            "pretrained": pretrained,
            "epochs_done": fitted.progress.epoch,
            "best_epoch": fitted.progress.best_epoch,
            "seconds": round(fitted.progress.seconds, 1),
            "ran_on": fitted.ran_on,
        },
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{
                name: _version(name)
                for name in ("edgeqc", "torch", "lightning-fabric", "numpy", "scikit-learn")
            },
        },
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
