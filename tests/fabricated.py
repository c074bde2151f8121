"""Data sets of a few pixels, and predictions that nobody's network made: for tests that count by hand."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.folders import sha256
from edge.predictions import Predictions
from edge.samples import Sample, read_samples

RAN_ON = {"device": "CPU", "sdk": "openvino", "version": "1.0", "stand_in": False, "processor": "x86_64"}


def mask(text: str) -> np.ndarray:
    """`"##. / #.."` as a bool mask: rows divided by slashes, `#` is defect."""
    return np.array([[pixel == "#" for pixel in row.strip()] for row in text.split("/")])


def write_samples(folder: Path, truths: Mapping[str, np.ndarray | None], split: str = "test") -> list[Sample]:
    """A data set: sample name -> ground truth; None is a good sample, an empty mask a defective one."""
    folder.mkdir(parents=True, exist_ok=True)
    size = next((truth.shape for truth in truths.values() if truth is not None), (4, 4))
    rows = []
    for number, (name, truth) in enumerate(truths.items()):
        pixels = np.full(size, 100, np.uint8)
        pixels.flat[:2] = divmod(number, 256)  # no two images have the same bytes
        np.save(folder / f"{number}.npy", pixels)
        (folder / f"{number}.npy").rename(folder / name)
        if truth is not None:
            np.save(folder / f"mask-{number}.npy", truth.astype(np.uint8) * 255)
        rows.append((name, "" if truth is None else f"mask-{number}.npy", int(truth is not None), split))
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image", "mask", "defective", "split"), *rows])
    return read_samples(folder, split)


def predictions(
    samples: Sequence[Sample], logits: Sequence[float], masks: Sequence[np.ndarray], **meta: Any
) -> Predictions:
    """Predictions of `samples` at threshold 0, made on an imaginary CPU unless `meta` says otherwise."""
    facts = {
        "name": "net",
        "target": None,
        "precision": "fp32",
        "ran_on": dict(RAN_ON),
        "source_digest": "0" * 64,
        "threshold": 0.0,
        "mask_threshold": 0.0,
    }
    return Predictions(
        tuple(sample.id for sample in samples),
        tuple(sha256(sample.image) for sample in samples),
        np.array(logits, np.float32),
        tuple(np.asarray(one, bool) for one in masks),
        np.ones(len(samples), np.float32),
        {**facts, **meta},
    )
