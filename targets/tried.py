"""What `export` tried before it wrote an artifact: `gate.json`, read back, and the fallback that it tells of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.artifact import GATE
from edge.errors import ArtifactError

WANTED = "int8"  # what the grid is for; anything else that ships instead is a fallback


@dataclass(frozen=True)
class Tried:
    """One precision that was tried, with its numbers on the gate's split.

    Attributes:
        ranges: how the ranges of the grid were chosen; empty where there was nothing to choose, or it is not told.
        widening: the share of multiply-accumulates that copies of channels were allowed.
        mask_agreement: NaN where there was nothing to measure it on.
        reasons: why it did not pass; empty when it did.
    """

    precision: str
    n: int
    flips: int
    new_misses: int
    mask_agreement: float
    reasons: tuple[str, ...] = ()
    ranges: str = ""
    widening: float = 0.0

    @property
    def grid(self) -> str:
        """For people: which grid, empty where there is one only."""
        return grid_name(self.ranges, self.widening).strip(" ()")

    @property
    def passed(self) -> bool:
        return not self.reasons


def read_tried(folder: Path) -> tuple[Tried, ...]:
    """The candidates of the artifact in `folder`, in the order they were tried; empty where no gate is told of.

    Raises:
        ArtifactError: `gate.json` is not what `export` writes.
    """
    file = folder / GATE
    if not file.is_file():  # a RUN, or a prediction file
        return ()
    try:
        # Another exporter than ours need not tell of candidates.
        return tried(json.loads(file.read_bytes()).get("candidates", ()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ArtifactError(
            f"{file} is not readable as a gate's record",
            got=f"{type(exc).__name__}: {exc}",
            next_step="copy or export the artifact again",
        ) from exc


def tried(candidates: Iterable[Mapping[str, Any]]) -> tuple[Tried, ...]:
    """`candidates` of `gate.json` as data."""
    return tuple(
        _one(
            candidate["precision"],
            candidate["row"],
            candidate["reasons"],
            candidate.get("ranges") or "",
            candidate.get("widening") or 0.0,
        )
        for candidate in candidates
    )


def grid_name(ranges: str | None, widening: float) -> str:
    """`` (mse ranges, 10 % wider)``: what tells the grids of one precision apart; empty where there is nothing."""
    if not ranges:
        return ""
    return f" ({ranges} ranges{f', {widening:.0%} wider' if widening else ''})".replace("%", " %")


def _one(
    precision: str, row: Mapping[str, Any], reasons: Sequence[str], ranges: str, widening: float
) -> Tried:
    agreement = row["mask_agreement_iou"]
    return Tried(
        str(precision),
        int(row["n"]),
        int(row["flips"]),
        int(row["new_misses"]),
        math.nan if agreement is None else float(agreement),  # JSON has no NaN
        tuple(map(str, reasons)),
        ranges,
        float(widening),
    )


def fallback(candidates: Sequence[Tried]) -> str:
    """One sentence where int8 was tried, missed, and another precision passed in its place; else empty."""
    shipped = next((place for place, one in enumerate(candidates) if one.passed), None)
    if shipped is None:
        return ""
    before = candidates[:shipped]
    if candidates[shipped].precision == WANTED or all(one.precision != WANTED for one in before):
        return ""
    missed = [
        f"{one.precision}{grid_name(one.ranges, one.widening)} missed: {'; '.join(one.reasons)}"
        for one in before
    ]
    return "; ".join([*missed, f"shipped as {candidates[shipped].precision}"])
