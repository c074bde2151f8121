"""Plain CAM, what training from labels alone is compared with: ``python -m quantize.weak.plain --help``.

Class activation mapping as published (Zhou et al., CVPR 2016): a classifier of the image labels, global mean pooling,
one linear layer, the map at stride 16 scaled between its lowest and its highest value, and cut at a fixed share. The
classifier is trained as the Defect Focus Classifier is, for as long, without contrast, crops and finer features.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from edge.folders import new_folder, sha256, write_json
from edge.images import read_image
from edge.predictions import Predictions
from edge.preprocess import Framing, InputSpec
from edge.progress import progress
from edge.samples import Sample, read_samples
from quantize.data.dataset import open_dataset
from quantize.data.sizing import choose_input
from quantize.decision import choose_threshold
from quantize.run import METRICS, RUN, network_input
from quantize.training.config import TrainingConfig
from quantize.training.fit import make_fabric
from quantize.weak.activation import on_grid
from quantize.weak.classifier import evidence_of, pool
from quantize.weak.focus import (
    WEIGHTS,
    FocusConfig,
    load_classifier,
    save_classifier,
    train_from_labels,
)
from quantize.weak.job import CLASSIFIER_EPOCHS, CLASSIFIER_TIME
from quantize.weak.photographs import Photographs

STRIDE = 16
# Of the range of a map. Zhou et al. take 0.2; on photographs of `train` 0.4 was better for plain CAM, never worse.
SHARE = 0.4
CHUNK = 16


def train_plain_cam(
    data: Path, out: Path, training: TrainingConfig, pretrained: str | None = None, splits: Sequence[str] = ()
) -> None:
    """Write ``out``: ``run/`` (weights, ``run.json``, ``metrics.json``) and ``SPLIT.npz`` for each of ``splits``.

    The time limit and the epochs of ``training`` are those of a whole training; the classifier takes the share of
    them that it has there. No mask file is opened. Raises ``InputError`` as ``train_weak`` does.
    """
    fabric = make_fabric(replace(training, devices="1"))
    fabric.launch()
    began = time.monotonic()
    dataset = open_dataset(data, masks=False)
    choice = choose_input(dataset, None, Framing("resize"))
    spec = network_input(*choice.size, dataset.channels)
    config = FocusConfig(
        plain=True,
        epochs=max(1, round(training.epochs * CLASSIFIER_EPOCHS)),
        time_limit_min=training.time_limit_min * CLASSIFIER_TIME,
        batch_size=training.batch_size,
        seed=training.seed,
    )
    val = dataset.split("val")
    trained = train_from_labels(fabric, dataset.split("train"), val, spec, pretrained, config)
    decision = choose_threshold([sample.defective for sample in val], trained.val_scores)
    with new_folder(out) as staging:
        run = staging / "run"
        run.mkdir()
        save_classifier(run, trained)
        facts = {
            "name": "plain-cam",
            "model": {"name": "plain-cam", "share": SHARE, "channels": spec.channels},
            "input": {"width": spec.width, "height": spec.height, "channels": spec.channels},
            "framing": asdict(choice.framing),
            "decision": decision.as_dict(),
            "mask_threshold": None,
            "data": dataset.summary(),
            "training": {
                **asdict(config),
                "epochs_done": trained.epochs,
                "pretrained": trained.pretrained,
                "seconds": round(time.monotonic() - began, 1),
            },
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        write_json(run / RUN, facts)
        write_json(run / METRICS, {"history": []})
        model = load_classifier(run, spec.channels, config).to(fabric.device)
        digest = sha256(run / WEIGHTS)
        for split in splits:
            predict_plain_cam(
                fabric, model, read_samples(data, split), spec, decision.threshold, digest
            ).save(staging / f"{split}.npz")


def predict_plain_cam(
    fabric: Fabric,
    model: nn.Module,
    samples: Sequence[Sample],
    spec: InputSpec,
    threshold: float,
    digest: str,
) -> Predictions:
    """Scores and masks of ``samples``; every photograph has a mask, whatever its verdict, as a network's has."""
    scores, masks = [], []
    for start in progress(range(0, len(samples), CHUNK), "plain CAM"):
        part = samples[start : start + CHUNK]
        evidence = evidence_of(fabric, model, Photographs(part, spec).whole)
        scores.extend(pool(evidence[:, None], "mean").tolist())
        for sample, pixels in zip(part, on_grid(evidence, STRIDE, spec).numpy()):
            height, width = read_image(sample.image).shape[:2]
            scaled = (pixels - pixels.min()) / max(float(np.ptp(pixels)), 1e-9)
            masks.append(cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR) >= SHARE)
    ran_on = {"device": str(fabric.device), "sdk": "torch", "version": torch.__version__, "stand_in": False}
    meta: dict[str, Any] = {
        "name": "plain-cam",
        "target": None,
        "precision": "mixed",
        "gate": None,
        "ran_on": ran_on,
        "source_digest": digest,
        "threshold": threshold,
        "mask_threshold": SHARE,
    }
    return Predictions(
        tuple(sample.id for sample in samples),
        tuple(sha256(sample.image) for sample in samples),
        np.array(scores, np.float32),
        tuple(masks),
        np.zeros(len(samples), np.float32),
        meta,
    )


def main() -> None:
    """Train plain CAM on ``--data`` and predict ``val`` and ``test``."""
    parser = ArgumentParser(prog="python -m quantize.weak.plain", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="D")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--pretrained", metavar="PATH")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit-min", type=float, default=TrainingConfig().time_limit_min)
    options = parser.parse_args()
    training = TrainingConfig(seed=options.seed, time_limit_min=options.time_limit_min)
    train_plain_cam(options.data, options.out, training, options.pretrained, ("val", "test"))


if __name__ == "__main__":
    main()
