"""``edgeqc train --weak``: image labels in, an ordinary RUN out, through stages that each can be looked at.

After the paper (Applied Soft Computing 184, 113661): classifier, inpainting extension, pseudo masks, segmentation
network, refinement and one more round, distillation into one fully supervised network. No mask file is opened.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from numpy.typing import NDArray

from edge.errors import InputError
from edge.folders import new_folder, refuse_existing, write_json
from edge.predictions import predict
from edge.preprocess import Framing, InputSpec
from quantize.data.dataset import Dataset, open_dataset
from quantize.data.sizing import InputChoice, choose_input
from quantize.decision import DecisionRule, check_decidable, choose_threshold
from quantize.metrics import sample_metrics
from quantize.models import build
from quantize.reference import open_run
from quantize.run import METRICS, RUN, WEIGHTS, network_input
from quantize.training.config import TrainingConfig
from quantize.training.fit import make_fabric
from quantize.training.job import Job, Trained, train
from quantize.weak.activation import activate
from quantize.weak.extension import CONTROLS, ExtensionConfig, extend
from quantize.weak.focus import FocusConfig, load_classifier, save_classifier, train_from_labels
from quantize.weak.photographs import Photographs
from quantize.weak.pictures import contact_sheet
from quantize.weak.pseudo import (
    Mask,
    PseudoConfig,
    add_votes,
    masks_from_evidence,
    write_dataset,
)
from quantize.weak.stages import Stages, read_facts

EVIDENCE = "evidence.npz"
SHEET = "sheet.png"
# Shares of the time limit and of the epochs; what is left of the time goes to maps, masks and thresholds.
CLASSIFIER_TIME, SEGMENTER_TIME, DISTILLED_TIME = 0.30, 0.16, 0.28
CLASSIFIER_EPOCHS, SEGMENTER_EPOCHS = 0.3, 0.5


@dataclass(frozen=True)
class WeakConfig:
    """The stages' own knobs; the trainings take the job's."""

    focus: FocusConfig = field(default_factory=FocusConfig)
    extension: ExtensionConfig = field(default_factory=ExtensionConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)


DEFAULTS = WeakConfig()


def train_weak(job: Job, config: WeakConfig = DEFAULTS) -> Trained:
    """Train from image labels alone and write the RUN folder; or go on where an earlier call was cut off.

    The stages stay in ``OUT.weak``; they may be removed when nobody wants to look at them. Mask metrics in the RUN are
    against pseudo masks, and so is the mask threshold chosen; the verdict's threshold is chosen by the labels.

    Raises ``InputError`` before anything is written if the data or the options cannot be used.
    """
    refuse_existing(job.out)
    job = replace(job, config=_one_process(job.config))
    fabric = make_fabric(job.config)
    dataset = open_dataset(job.data, masks=False)
    for finding in dataset.findings:
        print(f"warning: {finding}", file=sys.stderr)
    check_decidable(job.decision, dataset.samples)
    for split in ("train", "val"):
        if len({sample.defective for sample in dataset.split(split)}) < 2:
            raise InputError(f"split {split} does not have both good and defective samples")
    build({"channels": dataset.channels, **job.model})  # refuses what the last stage would
    choice = choose_input(dataset, job.input_size, job.framing)
    print(choice.explanation, file=sys.stderr)
    job = replace(job, input_size=choice.size, framing=choice.framing)
    stages = Stages(
        job.out,
        {
            "data": dataset.digest,
            "model": job.model,
            "input_size": choice.size,
            "framing": asdict(choice.framing),
            "pretrained": job.pretrained,
            "training": job.config.as_dict(),
            "weak": asdict(config),
        },
    )
    stages.open()
    fabric.launch()
    weak = _Weak(job, config, fabric, dataset, stages, _classifier_input(dataset, job, choice))
    classifier = stages.run("1-classifier", weak.classify)
    stages.run("2-extension", lambda out: weak.extend(out, classifier))
    pseudo = stages.run("3-pseudo-masks", weak.cut_out)
    for name, done in (("4-segmenter", "5-relabelled"), ("6-segmenter", "7-relabelled")):
        segmenter = stages.train(
            name, weak.training(pseudo, SEGMENTER_TIME, SEGMENTER_EPOCHS, DecisionRule())
        )
        pseudo = stages.run(done, lambda out: weak.relabel(out, segmenter))  # noqa: B023
    distilled = stages.train("8-distilled", weak.training(pseudo, DISTILLED_TIME, 1.0, job.decision))
    return _finish(job, dataset, stages, distilled)


class _Weak:
    """What the stages share."""

    def __init__(
        self,
        job: Job,
        config: WeakConfig,
        fabric: Fabric,
        dataset: Dataset,
        stages: Stages,
        spec: InputSpec,
    ) -> None:
        self.job, self.config, self.fabric, self.stages, self.spec = job, config, fabric, stages, spec
        self.dataset = dataset
        # Split test is nobody's business here, and is not copied.
        self.learning = [sample for sample in dataset.samples if sample.split != "test"]
        self.defective = [s for s in self.learning if s.defective and s.split in ("train", "val")]

    def classify(self, out: Path) -> dict[str, Any]:
        """Stage 1: the Defect Focus Classifier."""
        training = self.job.config
        focus = replace(
            self.config.focus,
            epochs=max(1, round(training.epochs * CLASSIFIER_EPOCHS)),
            time_limit_min=training.time_limit_min * CLASSIFIER_TIME,
            batch_size=training.batch_size,
            seed=training.seed,
        )
        val = self.dataset.split("val")
        trained = train_from_labels(
            self.fabric, self.dataset.split("train"), val, self.spec, self.job.pretrained, focus
        )
        label = [sample.defective for sample in val]
        threshold = choose_threshold(label, trained.val_scores).threshold
        metrics = sample_metrics(np.array(label), trained.val_scores, threshold)
        save_classifier(out, trained)
        return {
            "pooling": trained.pooling,
            "threshold": round(threshold, 4),
            "val_ap": round(metrics["ap"], 4),
            "val_auroc": round(metrics["auroc"], 4),
            "epochs": trained.epochs,
        }

    def extend(self, out: Path, classifier: Path) -> dict[str, Any]:
        """Stage 2: activation maps, extended by painting over what was found."""
        facts = read_facts(classifier)
        focus = self.config.focus
        model = load_classifier(classifier, self.spec.channels, focus).to(self.fabric.device)
        seen = activate(self.fabric, model, self.defective, self.spec, focus.stride, facts["pooling"])
        good = [sample for sample in self.dataset.split("train") if not sample.defective]
        extended = extend(
            self.fabric,
            model,
            Photographs(self.defective, self.spec),
            Photographs(good[:CONTROLS], self.spec),
            seen.maps,
            self.config.pseudo.cut,
            threshold=facts["threshold"],
            stride=focus.stride,
            pooling=facts["pooling"],
            config=self.config.extension,
        )
        np.savez_compressed(out / EVIDENCE, maps=extended.maps)
        cut = self.config.pseudo.cut
        contact_sheet(out / SHEET, self.defective, list(extended.maps >= cut), list(seen.maps >= cut))
        return {
            "photographs": len(self.defective),
            "without_a_find": int((~(extended.maps >= cut).any(axis=(1, 2))).sum()),
            "extended": list(extended.added),
        }

    def cut_out(self, out: Path) -> dict[str, Any]:
        """Stage 3: pseudo masks from the evidence."""
        maps = self._evidence()
        masks = masks_from_evidence(self.defective, maps, self.spec, self.config.pseudo)
        return self._write(out, masks, list(maps >= self.config.pseudo.cut))

    def training(self, data: Path, time_share: float, epoch_share: float, decision: DecisionRule) -> Any:
        """A training on pseudo masks, as ``Stages.train`` wants it."""
        given = self.job.config
        config = replace(
            given,
            time_limit_min=given.time_limit_min * time_share,
            epochs=max(1, round(given.epochs * epoch_share)),
        )

        def work(out: Path) -> dict[str, Any]:
            if not out.exists():
                train(replace(self.job, data=data, out=out, config=config, decision=decision))
            metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
            facts = json.loads((out / RUN).read_text(encoding="utf-8"))["training"]
            return {
                "val_ap": round(metrics["val"]["sample"]["ap"], 4),
                "pseudo_mask_iou": round(metrics["mask_iou"] or 0.0, 4),
                "epochs": facts["epochs_done"],
                "seconds": facts["seconds"],
            }

        return work

    def relabel(self, out: Path, segmenter: Path) -> dict[str, Any]:
        """The next pseudo masks: evidence and the network's answer together, cut out again."""
        with open_run(segmenter) as inspector:
            predicted = predict(inspector, self.defective, what="relabelling").masks
        joined = add_votes(self._evidence(), predicted, self.config.pseudo.vote)
        masks = masks_from_evidence(self.defective, joined, self.spec, self.config.pseudo)
        return self._write(out, masks, list(predicted))

    def _evidence(self) -> NDArray[np.float16]:
        with np.load(self.stages.folder / "2-extension" / EVIDENCE) as members:
            maps: NDArray[np.float16] = members["maps"]
        return maps

    def _write(self, out: Path, masks: Sequence[Mask], found: Sequence[Mask]) -> dict[str, Any]:
        write_dataset(out, self.learning, dict(zip((s.id for s in self.defective), masks)))
        contact_sheet(out / SHEET, self.defective, masks, found)
        shares = [float(mask.mean()) for mask in masks]
        if not any(shares):
            print("warning: no defect was found in any photograph; masks cannot be learned", file=sys.stderr)
        return {
            "masks": sum(share > 0 for share in shares),
            "median_area": round(float(np.median(shares)), 5),
        }


def _finish(job: Job, dataset: Dataset, stages: Stages, distilled: Path) -> Trained:
    """The distilled network as the RUN that was asked for: of the user's data, with the stages' facts."""
    facts = json.loads((distilled / RUN).read_text(encoding="utf-8"))
    metrics = json.loads((distilled / METRICS).read_text(encoding="utf-8"))
    done = stages.facts()
    seconds = sum(stage["seconds"] for stage in done.values())
    with new_folder(job.out) as staging:
        for file in (WEIGHTS, METRICS):
            shutil.copyfile(distilled / file, staging / file)
        for sheet in sorted(stages.folder.glob(f"*/{SHEET}")):
            (staging / "weak").mkdir(exist_ok=True)
            shutil.copyfile(sheet, staging / "weak" / f"{sheet.parent.name}.png")
        write_json(staging / METRICS, {**metrics, "masks": "pseudo"})
        write_json(
            staging / RUN,
            {
                **facts,
                "name": job.out.name,
                "training": {
                    **facts["training"],
                    "epochs": job.config.epochs,
                    "time_limit_min": job.config.time_limit_min,
                    "seconds": round(seconds, 1),
                },
                "data": {**dataset.summary(), "masks": "none was opened"},
                "weak": {"masks_opened": 0, "stages": done},
            },
        )
    measured = _with_nan(metrics["val"])
    return Trained(job.out, measured, str(facts["training"]["pretrained"]), seconds, facts["decision"])


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    """Metrics as they were before JSON, which has no NaN: nulls are numbers that could not be computed."""
    return {
        key: _with_nan(value) if isinstance(value, dict) else math.nan if value is None else value
        for key, value in values.items()
    }


def _one_process(config: TrainingConfig) -> TrainingConfig:
    if config.devices not in ("auto", "1"):
        raise InputError(
            "training from labels alone runs in one process", wanted="--devices 1", got=config.devices
        )
    return replace(config, devices="1")


def _classifier_input(dataset: Dataset, job: Job, choice: InputChoice) -> InputSpec:
    """The classifier sees photographs whole: where the network will see tiles, they are resized for it."""
    size = choice.size
    if choice.framing.mode == "tile":
        size = choose_input(dataset, None, Framing("resize")).size
    return network_input(*size, int(job.model.get("channels", dataset.channels)))
