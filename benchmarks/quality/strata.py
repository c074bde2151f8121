"""Recall by kind and by size of the defect: an average hides that small and faint ones are missed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.sample_table import SampleTable

QUARTILES = 4


@dataclass(frozen=True, eq=False)
class Stratum:
    """Some of the defective photographs. `key` is for programs, `what` for people, `chosen` bool [n]."""

    key: str
    what: str
    chosen: NDArray[np.bool_]


def defect_types(table: SampleTable) -> list[Stratum]:
    """One stratum for each named defect type, in alphabetical order."""
    names = sorted({str(name) for name in table.defect_type[table.defective]} - {""})
    return [Stratum(f"type-{name}", name, table.defective & (table.defect_type == name)) for name in names]


def area_quartiles(table: SampleTable) -> list[Stratum]:
    """Quarters of the defective photographs by defect area in frame pixels, the smallest first.

    Photographs without a mask, or with an empty one, have no area and are in none.
    """
    areas = table.truth[table.masked]
    if len(areas) < QUARTILES:
        return []
    borders = np.quantile(areas, np.linspace(0, 1, QUARTILES + 1))
    # Equal areas must fall into one quarter, so a border belongs to the one above it.
    quarter = np.searchsorted(borders[1:-1], table.truth, side="right")
    return [
        Stratum(
            f"area-{number + 1}",
            f"area {borders[number]:.0f} to {borders[number + 1]:.0f} px",
            table.masked & (quarter == number),
        )
        for number in range(QUARTILES)
    ]


def recalls(table: SampleTable, stratum: Stratum) -> tuple[float, float]:
    """Share of the stratum that was called defective, and its Seg_Recall; NaN where there is none to ask."""
    masked = stratum.chosen & table.masked
    called = table.verdict[stratum.chosen].mean() if stratum.chosen.any() else np.nan
    found = (table.verdict * table.covered)[masked].mean() if masked.any() else np.nan
    return float(called), float(found)
