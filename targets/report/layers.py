"""`layers.html`: every operation of a grid in two runtimes, on one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from targets.layers.verdict import verdict
from targets.report.page import write_page


def write_layers(
    path: Path, result: Mapping[str, Any], *, data: str, written: datetime | None = None
) -> None:
    """Write the page of what `targets.layers.comparison.compare_layers` found.

    Args:
        data: the data set's name, for the heading.
        written: the date on the page; now when None.
    """
    suspects = {one["name"] for hidden in result["hidden"] for one in hidden["suspects"]}
    farthest = max(
        (error["max"] for row in result["layers"] for error in row["error"] if error["max"] != float("inf")),
        default=0.0,
    )
    write_page(
        path,
        "layers.html",
        written,
        result=result,
        sentences=verdict(result),
        suspects=suspects,
        scale=max(farthest, result["tolerance_steps"]),
        data=data,
    )
