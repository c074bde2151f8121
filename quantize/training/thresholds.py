"""The two thresholds, chosen once on full-precision scores that took the device's own path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backend import Session
from edge.images import read_image
from edge.postprocess import stitch
from edge.preprocess import Framing, InputSpec, Placement, encode, frame_to_tiles
from edge.progress import progress
from edge.samples import Sample
from quantize.data.dataset import read_mask
from quantize.decision import HIGHEST_F1, ChosenThreshold, DecisionRule, Scored, choose_mask_threshold, decide
from quantize.metrics import overlap

MASK_CANDIDATES = np.round(np.arange(-4.0, 4.01, 0.25), 2)


@dataclass(frozen=True)
class Thresholds:
    """Verdict threshold, mask threshold (both logits) and the mean IoU of the masks at it."""

    decision: ChosenThreshold
    mask_threshold: float
    mask_iou: float


def choose_thresholds(
    session: Session,
    spec: InputSpec,
    framing: Framing,
    val: Sequence[Sample],
    held_out: Sequence[Sample] = (),
    rule: DecisionRule = HIGHEST_F1,
) -> Thresholds:
    """Run ``session`` over the image files of ``val`` and choose both thresholds.

    ``held_out`` (split ``decide``) is scored after everything else is settled: it bounds the miss rate of the
    verdict threshold, and chooses it where ``rule`` says so.

    Raises:
        GuaranteeError: as ``quantize.decision.decide``.
    """
    scores: list[float] = []
    ious: list[list[float]] = []
    areas: list[list[int]] = []
    for sample in progress(val, "choosing thresholds on val"):
        score, masks, placement = _run(session, spec, framing, sample)
        scores.append(score)
        truth = read_mask(sample) if sample.defective and sample.mask is not None else None
        if truth is not None and truth.any():
            found = [stitch(masks, placement, step) for step in MASK_CANDIDATES.tolist()]
            ious.append([overlap(mask, truth).iou for mask in found])
            areas.append([int(mask.sum()) for mask in found])
    # No mask to choose by: even odds.
    mask_threshold, mask_iou = 0.0, float("nan")
    if ious:
        mask_threshold, mask_iou = choose_mask_threshold(np.array(ious).T, np.array(areas).T, MASK_CANDIDATES)
    kept = [_run(session, spec, framing, s)[0] for s in progress(held_out, "scoring split decide")]
    decision = decide(Scored(val, scores), Scored(held_out, kept) if held_out else None, rule)
    return Thresholds(decision, mask_threshold, mask_iou)


def _run(
    session: Session, spec: InputSpec, framing: Framing, sample: Sample
) -> tuple[float, list[NDArray[Any]], Placement]:
    """Defect logit (the largest over the tiles), mask logits of the tiles, and where the tiles lie."""
    tiles, placement = frame_to_tiles(read_image(sample.image), spec, framing)
    masks, defects = [], []
    for tile in tiles:
        outputs = session.run({session.inputs[0].name: encode(tile, spec)})
        defects.append(float(outputs["defect"].reshape(-1)[0]))
        masks.append(outputs["mask"][0, 0].copy())
    return max(defects), masks, placement
