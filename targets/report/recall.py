"""Which defects are found, before and after: by their type, and by how large they truly are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.predictions import Predictions
from edge.samples import Sample
from quantize.metrics import Overlap

QUARTERS = (0.25, 0.5, 0.75)
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Defect:
    """One defective sample; `was` is full precision's answer, `now` the artifact's.

    Attributes:
        kind: the data set's `defect_type`; empty where it says nothing.
        area: true area as a share of the frame; None where no mask is known or the mask is empty.
        found_was, found_now: the verdict is defective.
        marked_was, marked_now: share of the true area that is marked, 0 when not found; NaN without an area.
    """

    kind: str
    area: float | None
    found_was: bool
    found_now: bool
    marked_was: float
    marked_now: float


@dataclass(frozen=True)
class Group:
    """Defects that have something in common.

    Attributes:
        n: samples; `found_was` and `found_now` of them are found.
        seg_was, seg_now: mean Seg_Recall over those with a known mask; NaN without any.
    """

    name: str
    n: int
    found_was: int
    found_now: int
    seg_was: float
    seg_now: float


def defects(
    samples: Sequence[Sample],
    reference: Predictions,
    ours: Predictions,
    marked_was: Sequence[Overlap | None],
    marked_now: Sequence[Overlap | None],
) -> list[Defect]:
    """The defective ones of `samples`.

    Args:
        reference, ours, marked_was, marked_now: aligned with `samples`; overlaps as of `quantize.evaluation`.
    """
    rows = zip(samples, reference.verdicts, ours.verdicts, marked_was, marked_now)
    return [
        Defect(
            sample.defect_type,
            before.truth / before.pixels if before is not None and before.truth else None,
            bool(was),
            bool(now),
            _marked(before, bool(was)),
            _marked(after, bool(now)),
        )
        for sample, was, now, before, after in rows
        if sample.defective
    ]


def by_type(found: Sequence[Defect]) -> list[Group]:
    """A group for each defect type in alphabetical order; none where the data set has no types."""
    kinds = sorted({defect.kind for defect in found} - {""})
    if not kinds:
        return []
    groups = [(kind, [defect for defect in found if defect.kind == kind]) for kind in kinds]
    groups.append((NOT_STATED, [defect for defect in found if not defect.kind]))
    return [_group(name, members) for name, members in groups if members]


def by_area(found: Sequence[Defect]) -> list[Group]:
    """Four groups with a quarter of the defects each, the smallest first; defects without an area are left out.

    Defects of one area stay together, so ties make the groups uneven, or fewer.
    """
    sized = [(defect.area, defect) for defect in found if defect.area is not None]
    if not sized:
        return []
    areas = [area for area, _ in sized]
    quarter = np.searchsorted(np.quantile(areas, QUARTERS), areas)
    groups = []
    for number in range(len(QUARTERS) + 1):
        members = [pair for pair, place in zip(sized, quarter) if place == number]
        if members:
            within = [area for area, _ in members]
            groups.append(_group(_span(min(within), max(within)), [defect for _, defect in members]))
    return groups


def _group(name: str, members: Sequence[Defect]) -> Group:
    known = [defect for defect in members if defect.area is not None]
    return Group(
        name,
        len(members),
        sum(defect.found_was for defect in members),
        sum(defect.found_now for defect in members),
        sum(defect.marked_was for defect in known) / len(known) if known else math.nan,
        sum(defect.marked_now for defect in known) / len(known) if known else math.nan,
    )


def _marked(counts: Overlap | None, found: bool) -> float:
    if counts is None or not counts.truth:
        return math.nan
    return counts.intersection / counts.truth if found else 0.0


def _span(least: float, most: float) -> str:
    low, high = _percent(least), _percent(most)
    return f"{low} %" if low == high else f"{low} to {high} %"


def _percent(share: float) -> str:
    """Two digits that count, never in powers of ten."""
    return np.format_float_positional(100 * share, precision=2, fractional=False, trim="-")
