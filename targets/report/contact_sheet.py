"""One picture of a few samples side by side: photograph, truth, full precision and every device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.images import read_image
from edge.predictions import Predictions
from edge.preprocess import to_channels
from edge.samples import Sample
from quantize.data.dataset import read_mask

TRUTH, FULL_PRECISION, DEVICE = "#1a9850", "#2b7bba", "#e08214"
GOOD = 1  # one good part among the defective ones, to show that its mask stays empty


def write_contact_sheet(
    path: Path,
    samples: Sequence[Sample],
    reference: Predictions,
    devices: Sequence[tuple[str, Predictions]],
    *,
    count: int = 4,
) -> None:
    """Write a PNG with a row for each of `count` samples.

    Args:
        samples, reference, devices: aligned; devices as (title, predictions).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = ["photograph", "truth", "full precision", *(title for title, _ in devices)]
    rows = _spread(samples, count)
    figure = Figure(figsize=(1.5 * len(columns), 1.72 * len(rows) + 0.1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, index in zip(axes, rows):
        sample = samples[index]
        frame = to_channels(read_image(sample.image), 3)
        truth = read_mask(sample) if sample.mask else np.zeros(frame.shape[:2], bool)
        label = "defective" if sample.defective else "good"
        layers = [("", np.zeros_like(truth), TRUTH), (label, truth, TRUTH)]
        for predictions, colour in ((reference, FULL_PRECISION), *((p, DEVICE) for _, p in devices)):
            verdict = "defective" if predictions.verdicts[index] else "good"
            caption = f"{verdict} {predictions.defect_logits[index]:+.1f}"
            layers.append((caption, predictions.masks[index], colour))
        for axis, (caption, mask, colour) in zip(line, layers):
            _draw(axis, frame, mask, caption, colour)
    for axis, title in zip(axes[0], columns):
        axis.set_title(title, fontsize=9)
    figure.savefig(path)


def _draw(axis, frame: NDArray[np.uint8], mask: NDArray[np.bool_], caption: str, colour: str) -> None:  # type: ignore[no-untyped-def]
    axis.imshow(frame, interpolation="nearest")
    if mask.any():
        axis.contour(mask.astype(float), [0.5], colors=[colour], linewidths=1.2)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(caption, fontsize=8, labelpad=2)
    for side in axis.spines.values():
        side.set_visible(False)


def _spread(samples: Sequence[Sample], count: int) -> list[int]:
    """Indices of defective samples from the largest defect to the smallest, and of one good sample last."""
    good = [index for index, sample in enumerate(samples) if not sample.defective][:GOOD]
    sized = sorted(
        (-int(read_mask(sample).sum()), index)
        for index, sample in enumerate(samples)
        if sample.defective and sample.mask is not None
    )
    wanted = min(count - len(good), len(sized))
    places = np.linspace(0, len(sized) - 1, wanted).round().astype(int) if wanted else []
    return [*(sized[place][1] for place in places), *good]
