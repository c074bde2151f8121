"""The verbs ``train`` and ``evaluate``. Light to import: torch comes when a verb runs."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.command import Command, Outcome


def _whole(low: int, high: int, what: str) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdigit() or not low <= int(text) <= high:
            raise ArgumentTypeError(f"{text!r}: wanted {what} from {low} to {high}")
        return int(text)

    return convert


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r}: wanted a share from 0 to 1")
    return value


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text!r}: wanted minutes, 0 for no limit")
    return value


def _input_size(text: str) -> tuple[int, int] | None:
    """``256`` or ``320x256`` (width x height); None for ``auto``."""
    if text == "auto":
        return None
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() and 32 <= int(part) <= 4096 for part in parts):
        raise ArgumentTypeError(
            f"{text!r}: wanted auto, a side such as 256, or WIDTHxHEIGHT, each 32 to 4096"
        )
    sizes = (int(parts[0]), int(parts[-1]))
    if any(size % 16 for size in sizes):
        raise ArgumentTypeError(f"{text!r}: wanted multiples of 16, the coarsest stride of the network")
    return sizes


def _configure_train(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, metavar="D", help="data set folder with samples.csv"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="RUN folder to write")
    parser.add_argument(
        "--model",
        default="sample-centric",
        help="network (default: %(default)s), or package.module:function, one of your own"
        " (docs/own-network.md)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict of a network of your own, .safetensors or .pt; with --epochs 0 it stays as it is",
    )
    parser.add_argument(
        "--size",
        choices=("nano", "small", "base"),
        help="nano, small or base, from fastest to finest masks (default: small)",
    )
    parser.add_argument(
        "--channels", type=int, choices=(1, 3), help="1 grey, 3 RGB (default: what the images are)"
    )
    parser.add_argument(
        "--input-size",
        type=_input_size,
        default="auto",
        metavar="auto|S|WxH",
        help="network input in pixels (default: chosen from the photographs, and said)",
    )
    parser.add_argument(
        "--framing",
        default="auto",
        choices=("auto", "exact", "resize", "tile"),
        help="how a photograph becomes the input (default: chosen from the photographs, and said)",
    )
    parser.add_argument(
        "--overlap",
        type=_whole(0, 4096, "pixels"),
        default=0,
        help="pixels that neighbouring tiles share (framing tile)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="PATH",
        help="MobileNetV2 weights, file or folder (default: EDGEQC_PRETRAINED, the cache, a download)",
    )
    parser.add_argument(
        "--sample-gradient",
        type=_share,
        metavar="SHARE",
        help="share of the verdict loss's gradient that enters the encoder, 0 to 1 (default: 1)",
    )
    parser.add_argument(
        "--balance",
        choices=("gradnorm", "fixed", "linear"),
        help="how verdict and mask share the encoder's gradient (default: gradnorm)",
    )
    parser.add_argument(
        "--weak",
        action="store_true",
        help="learn masks from the labels alone: no mask file is opened (stages in OUT.weak, docs/weak.md)",
    )
    parser.add_argument(
        "--qat",
        type=Path,
        metavar="RUN0",
        help="tune the integer grid of RUN0 so that it answers as RUN0 does (docs/quantization.md)",
    )
    parser.add_argument(
        "--synthetic-defects",
        type=_share,
        metavar="SHARE",
        help="share of the good tiles in a batch that get a pasted defect, 0 to 1 (default: 0)",
    )
    parser.add_argument("--from-scratch", action="store_true", help="no pretrained encoder")
    parser.add_argument(
        "--epochs", type=_whole(0, 100_000, "epochs"), help="passes over the training data (default: 40)"
    )
    parser.add_argument("--batch-size", type=_whole(2, 4096, "images"), help="images in a step (default: 16)")
    parser.add_argument(
        "--time-limit-min",
        type=_minutes,
        metavar="MIN",
        help="shorten the schedule to this, 0 for none (default: 15)",
    )
    parser.add_argument(
        "--seed", type=_whole(0, 2**31 - 1, "a number"), help="of everything random (default: 0)"
    )
    parser.add_argument("--accelerator", help="Lightning Fabric's: auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--devices", help="Lightning Fabric's: auto or how many (default: auto)")
    parser.add_argument(
        "--precision",
        help="Lightning Fabric's: 32-true, bf16-mixed, ...; auto is bf16 where the processor computes in it",
    )
    decision = parser.add_argument_group("the verdict's threshold (none of it touches the training)")
    decision.add_argument(
        "--rule",
        default="f1",
        choices=("f1", "youden", "fixed", "risk"),
        help="highest F1 or Youden index on val, --threshold, or --max-miss-rate (default: %(default)s)",
    )
    decision.add_argument("--threshold", type=float, metavar="T", help="in logits, with --rule fixed")
    decision.add_argument(
        "--max-miss-rate",
        type=float,
        metavar="A",
        help="share of defective parts that may be missed, with --rule risk; counted on split decide",
    )
    decision.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="C",
        help="of the bounds on misses and false alarms (default: %(default)s)",
    )


def _run_qat(options: Namespace) -> Outcome:
    from edge.errors import InputError
    from quantize.qat_job import QatConfig, train_qat

    fixed = {
        "--weak": options.weak,
        "--from-scratch": options.from_scratch,
        "--pretrained": options.pretrained,
        "--weights": options.weights,
        "--size": options.size,
        "--channels": options.channels,
        "--input-size": options.input_size,
        "--sample-gradient": options.sample_gradient,
        "--balance": options.balance,
        "--synthetic-defects": options.synthetic_defects,
        "--devices": options.devices,
        "--precision": options.precision,
    }
    if given := [name for name, value in fixed.items() if value]:
        raise InputError(
            f"{', '.join(given)}: --qat has no use for it",
            next_step=f"what {options.qat} was trained with stays",
        )
    if options.epochs == 0:
        raise InputError("with 0 epochs nothing is tuned", next_step=f"{options.qat} exports as it is")
    names = ("epochs", "batch_size", "time_limit_min", "seed", "accelerator")
    config = QatConfig(**{name: value for name in names if (value := getattr(options, name)) is not None})
    tuned = train_qat(options.qat, options.data, options.out, config)
    return Outcome(
        text=f"{tuned.run}: tuned in {tuned.seconds / 60:.1f} min; from full precision on val (logits near the"
        f" thresholds): {tuned.before:.4f} before, {tuned.after:.4f} now",
        data={
            "run": str(tuned.run),
            "seconds": tuned.seconds,
            "val_distance": {"before": tuned.before, "after": tuned.after},
        },
    )


def _run_train(options: Namespace) -> Outcome:
    from edge.errors import InputError
    from edge.preprocess import Framing
    from quantize.decision import DecisionRule, explain
    from quantize.models.own import is_own
    from quantize.training.balance import BalanceConfig
    from quantize.training.config import TrainingConfig
    from quantize.training.defects import DefectConfig
    from quantize.training.job import Job, train

    if options.qat:
        return _run_qat(options)
    if options.from_scratch and options.pretrained:
        raise InputError("--from-scratch and --pretrained contradict each other")
    if options.overlap and options.framing != "tile":
        raise InputError("--overlap is for tiles", next_step="give --framing tile as well")
    names = ("epochs", "batch_size", "time_limit_min", "seed", "accelerator", "devices", "precision")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    model: dict[str, Any] = {"name": options.model}
    if options.size is not None or not is_own(options.model):
        model["size"] = options.size or "small"
    if options.synthetic_defects is not None:
        given["defects"] = DefectConfig(share=options.synthetic_defects)
    if options.balance is not None:
        given["balance"] = BalanceConfig(kind=options.balance)
    if options.sample_gradient is not None:
        model["sample_gradient"] = options.sample_gradient
    if options.channels is not None:
        model["channels"] = options.channels
    if options.weak:
        if is_own(options.model):
            raise InputError(
                "--weak ends in a network of edgeqc's", got=options.model, next_step="leave --model away"
            )
        from quantize.weak.job import train_weak as train
    trained = train(
        Job(
            data=options.data,
            out=options.out,
            model=model,
            input_size=options.input_size,
            framing=None if options.framing == "auto" else Framing(options.framing, options.overlap),
            pretrained="" if options.from_scratch else options.pretrained,
            config=TrainingConfig(**given),
            decision=DecisionRule(options.rule, options.threshold, options.max_miss_rate, options.confidence),
            weights=options.weights,
        )
    )
    how = "nothing trained" if options.epochs == 0 else f"trained in {trained.seconds / 60:.1f} min"
    text = f"{trained.run}: {how}, {trained.pretrained}"
    if trained.metrics:  # the first process of several measures
        masks = " (masks against pseudo masks: no true one was opened)" if options.weak else ""
        text += f"\nval: {_sentence(trained.metrics)}{masks}\n{explain(trained.decision)}"
    return Outcome(
        text=text,
        data={
            "run": str(trained.run),
            "seconds": trained.seconds,
            "val": trained.metrics,
            "decision": trained.decision,
        },
    )


def _configure_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN_OR_ARTIFACT", help="RUN folder or artifact folder")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="D", help="data set folder with samples.csv"
    )
    parser.add_argument(
        "--split", default="test", metavar="S", help="split of the data set (default: %(default)s)"
    )
    parser.add_argument("--device", help="the backend's device, such as CPU, cuda or edgetpu:0")
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="run on the host in place of the target's own device, marked as such",
    )


def _run_evaluate(options: Namespace) -> Outcome:
    from edge.inspector import open_inspector
    from edge.predictions import predict
    from quantize.data.dataset import open_dataset
    from quantize.evaluation import evaluate

    with open_inspector(options.model, device=options.device, stand_in=options.stand_in) as inspector:
        samples = list(open_dataset(options.data, options.split).samples)
        predictions = predict(inspector, samples, what="evaluating")
    metrics = evaluate(predictions, samples)
    where = predictions.meta["ran_on"]
    device = f"{where['device']} (stand-in, not verified on device)" if where["stand_in"] else where["device"]
    text = f"{options.split}, on {device} with {where['sdk']} {where['version']}: {_sentence(metrics)}"
    return Outcome(text=text, data=metrics)


def _sentence(metrics: dict[str, Any]) -> str:
    sample, seg = metrics["sample"], metrics["seg"]
    return (
        f"{metrics['n']} samples, {metrics['positives']} defective; AP {sample['ap']:.3f}, AUROC"
        f" {sample['auroc']:.3f}, F1 {sample['f1']:.3f}, misses {sample['misses']}, false alarms"
        f" {sample['false_alarms']}; Seg_mIoU {seg['seg_miou']:.3f}, Seg_Recall {seg['seg_recall']:.3f}, mIoU"
        f" {seg['miou']:.3f}, mPA {seg['mpa']:.3f}"
        + (f"; {seg['empty_positives']} defective without a mask" if seg["empty_positives"] else "")
    )


train = Command("train a network and choose its thresholds", _configure_train, _run_train)
evaluate = Command("decision-linked metrics of a RUN or an artifact", _configure_evaluate, _run_evaluate)
