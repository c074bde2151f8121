"""Numbers and places as people read them, and the table that `edgeqc parity` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

STAND_IN = "stand-in, not verified on device"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `artifacts` in `parity.json` as text for a terminal."""
    cells = [
        (
            "artifact", "target", "precision", "ran on", "flips", "new misses", "new false alarms",
            "masks agree", "Seg_Recall", "F1", "passed",
        )
    ]  # fmt: skip
    for row in rows:
        cells.append(
            (
                str(row["name"]), str(row["target"] or "-"), str(row["precision"] or "-"),
                where(row["ran_on"]) + (f" ({STAND_IN})" if row["stand_in"] else ""),
                f"{row['flips']} of {row['n']}", str(row["new_misses"]), str(row["new_false_alarms"]),
                number(row["mask_agreement_iou"]), number(row["delta"]["seg_recall"], "+.3f"),
                number(row["delta"]["f1"], "+.3f"), "yes" if row["passed"] else "NO",
            )
        )  # fmt: skip
    return columns(cells)


def columns(cells: Sequence[Sequence[str]]) -> str:
    """Cells in columns as wide as they need; the first line is the heading."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join([text[0], "  ".join("-" * width for width in widths), *text[1:]])


def where(ran_on: Mapping[str, Any]) -> str:
    """SDK, version and device of a `ran_on`."""
    return " ".join(str(ran_on[key]) for key in ("sdk", "version", "device") if ran_on.get(key)) or "unknown"


def number(value: float | None, form: str = ".3f") -> str:
    """A number in the given format, a zero without a sign; `n/a` for what could not be measured."""
    if value is None or math.isnan(value):
        return "n/a"
    text = format(value, form)
    return text.lstrip("+-") if float(text) == 0 else text
