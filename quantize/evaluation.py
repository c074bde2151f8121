"""Predictions against the ground truth of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.errors import InputError
from edge.predictions import Predictions
from edge.samples import Sample
from quantize.data.dataset import read_mask
from quantize.metrics import Overlap, decision_metrics, overlap


def overlaps(predictions: Predictions, samples: Sequence[Sample]) -> list[Overlap | None]:
    """Pixel counts of each predicted mask against the truth; None where the truth is unknown.

    ``samples`` are in the order of ``predictions``. A good sample without a mask file is known: it has no
    defective pixel.
    """
    _check_same(predictions, samples)
    counts: list[Overlap | None] = []
    for sample, predicted in zip(samples, predictions.masks):
        if not sample.defective:
            counts.append(Overlap(0, int(predicted.sum()), 0, int(predicted.size)))
        elif sample.mask is None:
            counts.append(None)
        else:
            truth = read_mask(sample)
            if truth.shape != predicted.shape:
                raise InputError(
                    f"{sample.where}: the mask does not fit the prediction",
                    wanted=truth.shape,
                    got=predicted.shape,
                )
            counts.append(overlap(predicted, truth))
    return counts


def evaluate(predictions: Predictions, samples: Sequence[Sample]) -> dict[str, Any]:
    """The decision-linked metrics of ``predictions``: what ``edgeqc evaluate`` reports."""
    counts = overlaps(predictions, samples)
    return decision_metrics(
        [sample.defective for sample in samples], predictions.defect_logits, predictions.threshold, counts
    )


def _check_same(predictions: Predictions, samples: Sequence[Sample]) -> None:
    wanted = tuple(sample.id for sample in samples)
    if predictions.sample_ids != wanted:
        different = next(
            (i for i, (a, b) in enumerate(zip(predictions.sample_ids, wanted)) if a != b),
            min(len(predictions), len(wanted)),
        )
        raise InputError(
            "the predictions are not of these samples",
            wanted=f"{len(wanted)} samples"
            + (f", then {wanted[different]}" if different < len(wanted) else ""),
            got=f"{len(predictions)} samples, different from number {different + 1} on",
        )
