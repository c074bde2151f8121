"""The two thresholds, chosen on full-precision scores of ``val`` that took the device's own path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.backend import Session
from edge.images import read_image
from edge.postprocess import stitch
from edge.preprocess import Framing, InputSpec, encode, frame_to_tiles
from edge.progress import progress
from edge.samples import Sample
from quantize.data.dataset import read_mask
from quantize.decision import ChosenThreshold, choose_mask_threshold, choose_threshold
from quantize.metrics import overlap

MASK_CANDIDATES = np.round(np.arange(-4.0, 4.01, 0.25), 2)


@dataclass(frozen=True)
class Thresholds:
    """Verdict threshold, mask threshold (both logits) and the mean IoU of the masks at it."""

    decision: ChosenThreshold
    mask_threshold: float
    mask_iou: float


def choose_thresholds(
    session: Session, spec: InputSpec, framing: Framing, samples: Sequence[Sample]
) -> Thresholds:
    """Run ``session`` over the image files of ``samples`` and choose both thresholds."""
    scores: list[float] = []
    ious: list[list[float]] = []
    for sample in progress(samples, "choosing thresholds on val"):
        tiles, placement = frame_to_tiles(read_image(sample.image), spec, framing)
        logits: list[Any] = []
        defects: list[float] = []
        for tile in tiles:
            outputs = session.run({session.inputs[0].name: encode(tile, spec)})
            defects.append(float(outputs["defect"].reshape(-1)[0]))
            logits.append(outputs["mask"][0, 0].copy())
        scores.append(max(defects))
        truth = read_mask(sample) if sample.defective and sample.mask is not None else None
        if truth is not None and truth.any():
            ious.append(
                [overlap(stitch(logits, placement, step), truth).iou for step in MASK_CANDIDATES.tolist()]
            )
    decision = choose_threshold([sample.defective for sample in samples], scores)
    if not ious:  # no mask to choose by: even odds
        return Thresholds(decision, 0.0, float("nan"))
    mask_threshold, mask_iou = choose_mask_threshold(np.array(ious).T, MASK_CANDIDATES)
    return Thresholds(decision, mask_threshold, mask_iou)
