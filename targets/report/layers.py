"""`layers.html`: every operation of a grid in two runtimes, on one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge.folders import write_atomically
from targets.layers.verb import verdict
from targets.report import FOLDER
from targets.report.text import STAND_IN, number, where


def write_layers(
    path: Path, result: Mapping[str, Any], *, data: str, written: datetime | None = None
) -> None:
    """Write the page of what `targets.layers.comparison.compare_layers` found.

    Args:
        data: the data set's name, for the heading.
        written: the date on the page; now when None.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, where=where)
    suspects = {one["name"] for hidden in result["hidden"] for one in hidden["suspects"]}
    farthest = max(
        (error["max"] for row in result["layers"] for error in row["error"] if error["max"] != float("inf")),
        default=0.0,
    )
    html = environment.get_template("layers.html").render(
        result=result,
        sentences=verdict(result),
        suspects=suspects,
        scale=max(farthest, result["tolerance_steps"]),
        data=data,
        stand_in=STAND_IN,
        written=(written or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC"),
        css=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
    )
    write_atomically(path, html.encode("utf-8", "replace"))
