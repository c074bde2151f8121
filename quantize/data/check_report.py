"""The page of ``edgeqc data check``: one file that loads nothing, for a desk and for a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edge.folders import write_atomically
from edge.images import png_bytes, read_image
from edge.preprocess import UInt8Array, resize, to_channels
from edge.samples import Sample
from quantize.data.check import FAILURE, Check, CheckFinding, Photograph, statistics
from quantize.data.dataset import read_mask

FOLDER = Path(__file__).parent
SHOWN = 12  # cases with pictures for each finding; all are listed
MOST_PICTURES = 6  # of one case
LONG_SIDE_PX = 240
MARK = np.array([224, 49, 36], np.float32)
INK, QUIET, GRID = "#1d2733", "#5b6876", "#dfe4ea"
COLOURS = ("#2b7bba", "#e08214", "#1a9850", "#8c5bb0", "#7f7f7f")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "edgeqc",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "xtick.color": QUIET,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_report(path: Path, check: Check, *, written: datetime | None = None) -> None:
    """Write the page of ``check`` to ``path``; ``written`` is the date on it, now when None."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("check.html").render(
        check=check,
        splits=statistics(check.photographs),
        findings=[_section(finding) for finding in check.findings],
        failures=[finding for finding in check.findings if finding.level == FAILURE],
        charts=_charts(check.photographs),
        written=(written or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC"),
        css=Markup((FOLDER / "check.css").read_text(encoding="utf-8")),
    )
    write_atomically(path, html.encode("utf-8", "replace"))


def _section(finding: CheckFinding) -> dict[str, Any]:
    cards = [
        {"case": case, "pictures": [_picture(sample) for sample in case.samples[:MOST_PICTURES]]}
        for case in finding.cases[:SHOWN]
    ]
    return {"finding": finding, "cards": cards, "failed": finding.level == FAILURE}


def _picture(sample: Sample) -> dict[str, Any]:
    image = to_channels(read_image(sample.image), 3)
    shrink = max(*image.shape[:2], LONG_SIDE_PX) / LONG_SIDE_PX
    height, width = (max(round(side / shrink), 1) for side in image.shape[:2])
    small = resize(image, height, width)
    if sample.mask is not None:
        marked = resize(read_mask(sample).astype(np.uint8) * np.uint8(255), height, width)
        small = _tinted(small, marked)
    uri = "data:image/png;base64," + base64.b64encode(png_bytes(small)).decode("ascii")
    return {"uri": uri, "sample": sample, "width": width, "height": height}


def _tinted(image: UInt8Array, marked: UInt8Array) -> UInt8Array:
    """The marked pixels half in ``MARK``."""
    share = marked.astype(np.float32)[:, :, None] / 255 * 0.45
    return np.rint(image * (1 - share) + MARK * share).astype(np.uint8)


def _charts(photographs: Sequence[Photograph]) -> list[dict[str, str]]:
    splits = list(dict.fromkeys(p.sample.split for p in photographs))
    charts = [
        (_types, "Photographs by defect type and split."),
        (_sizes, "Sizes of the photographs; one dot may be many."),
    ]
    if any(p.defect_pixels for p in photographs):
        charts.append(
            (_defects, "Defects: area and thickest place of each marked photograph, in its pixels.")
        )
    return [{"uri": _drawn(draw, photographs, splits), "text": text} for draw, text in charts]


def _drawn(draw: Callable[..., None], photographs: Sequence[Photograph], splits: Sequence[str]) -> str:
    """One chart as SVG in a ``data:`` URI: inside an <img> it can load nothing."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots(), photographs, splits)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _types(axes: Any, photographs: Sequence[Photograph], splits: Sequence[str]) -> None:
    def kind(p: Photograph) -> str:
        return p.sample.defect_type or ("defective" if p.sample.defective else "good")

    kinds = sorted({kind(p) for p in photographs}, key=lambda k: sum(kind(p) == k for p in photographs))
    left = np.zeros(len(kinds))
    for split, colour in zip(splits, _colours(splits)):
        counts = np.array([sum(kind(p) == k and p.sample.split == split for p in photographs) for k in kinds])
        axes.barh(kinds, counts, left=left, color=colour, label=split, height=0.7)
        left += counts
    for place, total in enumerate(left):
        axes.annotate(f"{total:.0f}", (total, place), xytext=(3, 0), textcoords="offset points", va="center")
    axes.set(xlabel="photographs", xlim=(0, left.max() * 1.12))
    axes.legend(frameon=False, loc="lower right")


def _sizes(axes: Any, photographs: Sequence[Photograph], splits: Sequence[str]) -> None:
    _scatter(axes, photographs, splits, lambda p: p.size)
    axes.set(xlabel="width in pixels", ylabel="height in pixels", xlim=(0, None), ylim=(0, None))


def _defects(axes: Any, photographs: Sequence[Photograph], splits: Sequence[str]) -> None:
    _scatter(
        axes, [p for p in photographs if p.defect_pixels], splits, lambda p: (p.defect_pixels, p.thickness)
    )
    axes.set(xscale="log", yscale="log", xlabel="area in pixels", ylabel="thickness in pixels")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")


def _scatter(
    axes: Any,
    photographs: Sequence[Photograph],
    splits: Sequence[str],
    point: Callable[[Photograph], tuple[Any, Any]],
) -> None:
    for split, colour in zip(splits, _colours(splits)):
        points = sorted({point(p) for p in photographs if p.sample.split == split})
        if points:
            x, y = zip(*points)
            axes.scatter(x, y, s=14, color=colour, alpha=0.55, linewidths=0, label=split)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)


def _colours(splits: Sequence[str]) -> list[str]:
    return [COLOURS[min(place, len(COLOURS) - 1)] for place in range(len(splits))]
