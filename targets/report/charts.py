"""The charts of an artifact, drawn by matplotlib as SVG and handed over as `data:` URIs.

Inside an <img> a chart cannot load anything, and its ids and styles cannot clash with the page's.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.report.cases import CORRECTED, NEW_FALSE_ALARM, NEW_MISS, Case

INK, QUIET, GRID, BARS = "#1d2733", "#5b6876", "#dfe4ea", "#9aa7b4"
# Colour and shape both say what a point is, for the colour-blind and for black-and-white paper.
FLIPS = {
    NEW_MISS: ("#c02418", "v"),
    NEW_FALSE_ALARM: ("#c26a00", "^"),
    CORRECTED: ("#0b6fb8", "D"),
}
MANY = 2000  # beyond that many points a chart's points are drawn as pixels, the rest stays vectors
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "edgeqc",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


def score_scatter(
    full: NDArray[np.float32],
    ours: NDArray[np.float32],
    defective: Sequence[bool],
    threshold: float,
    every: Sequence[Case],
    numbers: dict[int, int],
) -> str:
    """Logits of full precision (x) against the artifact's (y), thresholds as lines, flips marked.

    Args:
        numbers: sample index -> number of the case as shown below the chart.
    """
    label = np.asarray(defective, bool)
    flipped = np.array([bool(case.kind) for case in every], bool)
    low, high = _limits(np.concatenate([full, ours, [threshold]]))
    with _figure(5.0, 4.7) as (axes, finish):
        axes.plot([low, high], [low, high], color=GRID, linewidth=1, zorder=1)
        axes.axvline(threshold, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        axes.axhline(threshold, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        quiet = {"s": 16, "linewidths": 0.9, "rasterized": len(every) > MANY, "zorder": 3, "alpha": 0.75}
        good, bad = ~label & ~flipped, label & ~flipped
        axes.scatter(full[good], ours[good], facecolors="none", edgecolors=QUIET, label="good", **quiet)
        axes.scatter(full[bad], ours[bad], facecolors=INK, edgecolors=INK, label="defective", **quiet)
        for kind, (colour, marker) in FLIPS.items():
            points = [case.index for case in every if case.kind == kind]
            if points:
                axes.scatter(
                    full[points], ours[points], s=46, marker=marker, color=colour, label=kind,
                    edgecolors="white", linewidths=0.7, zorder=4,
                )  # fmt: skip
        for case in every:
            if case.kind and case.index in numbers:
                axes.annotate(
                    str(numbers[case.index]), (full[case.index], ours[case.index]), xytext=(5, 4),
                    textcoords="offset points", fontsize=8.5, color=FLIPS[case.kind][0], zorder=5,
                )  # fmt: skip
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel="defect logit, full precision", ylabel="defect logit, this artifact")
        corner = {"fontsize": 8, "color": QUIET, "transform": axes.transAxes}
        axes.text(0.02, 0.98, "only the artifact\nsays defective", va="top", ha="left", **corner)
        axes.text(0.98, 0.02, "only full precision\nsays defective", va="bottom", ha="right", **corner)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=5, frameon=False, fontsize=8.5,
            handletextpad=0.2, columnspacing=1.0,
        )  # fmt: skip
        return finish()


def shift_histogram(every: Sequence[Case]) -> str:
    """How far the scores moved: artifact minus full precision, in logits."""
    changes = np.array([case.change for case in every])
    edges = np.histogram_bin_edges(changes, bins=min(41, max(9, len(every) // 6)))
    if changes.min() == changes.max():
        edges = changes[0] + np.linspace(-0.5, 0.5, 10)
    with _figure(5.0, 2.3) as (axes, finish):
        groups, labels, colours = [], [], []
        for kind, colour in (("", BARS), *((kind, colour) for kind, (colour, _) in FLIPS.items())):
            values = [case.change for case in every if case.kind == kind]
            if values:
                groups.append(values)
                labels.append(kind or "same verdict")
                colours.append(colour)
        axes.hist(groups, bins=edges, stacked=True, color=colours, label=labels, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1)
        axes.locator_params(axis="x", nbins=6)
        _count_samples(axes)
        axes.set(xlabel="score change in logits (artifact minus full precision)")
        _legend_above(axes)
        return finish()


def agreement_histogram(every: Sequence[Case]) -> str:
    """How well each mask that full precision calls for is matched; empty where it calls for none."""
    agreements = [case.agreement for case in every if case.called]
    if not agreements:
        return ""
    with _figure(5.0, 2.3) as (axes, finish):
        axes.hist(agreements, bins=list(np.linspace(0, 1, 41)), color=BARS, linewidth=0)
        for value, style, name in (
            (float(np.mean(agreements)), "-", "mean"),
            (float(np.percentile(agreements, 10)), (0, (4, 3)), "10th percentile"),
        ):
            axes.axvline(value, color=INK, linewidth=1, linestyle=style, label=name)
        axes.set(xlim=(0, 1.005), xlabel="mask agreement of a sample (1: the same mask)")
        _count_samples(axes)
        _legend_above(axes)
        return finish()


def _legend_above(axes: Any) -> None:
    """Inside, it would hide a bar sooner or later."""
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=8.5,
        handlelength=1.4, handletextpad=0.4, columnspacing=1.0, borderaxespad=0.2,
    )  # fmt: skip


def _count_samples(axes: Any) -> None:
    axes.yaxis.get_major_locator().set_params(integer=True, nbins=5)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set(ylabel="samples")


def _limits(values: NDArray[Any]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def svg_bytes(figure: Any, *, transparent: bool = True) -> bytes:
    """A figure as SVG, the same bytes for the same picture, in the reader's own font."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=transparent, metadata={"Date": None})
    svg = re.sub(rb"<metadata>.*?</metadata>", b"", stream.getvalue(), flags=re.DOTALL)
    svg = re.sub(rb"<!DOCTYPE.*?>", b"", svg, flags=re.DOTALL)
    return re.sub(rb"'DejaVu Sans'[^;\"]*", b"system-ui, sans-serif", svg)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Axes on a new figure of that many inches, and the function that turns it into a `data:` URI."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()

        def finish() -> str:
            return "data:image/svg+xml;base64," + base64.b64encode(svg_bytes(figure)).decode("ascii")

        yield axes, finish
