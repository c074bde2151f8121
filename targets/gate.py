"""The gate: how much an artifact may differ from full precision before it is refused.

A budget is data. Every limit that is set is checked. Where the data set has nothing to measure one on (no defective
sample, no mask), that is said: what was not judged did not pass.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import InputError
from edge.samples import DECIDE, Sample

MASKS = "mask agreement"
_SHARES = ("max_flip_share", "min_mask_agreement", "max_f1_drop", "max_seg_recall_drop")


@dataclass(frozen=True)
class Budget:
    """Limits on one row of `parity.json`; None: no limit.

    Attributes:
        max_flip_share: verdicts that differ from full precision, share of all samples, 0..1. Any share but 0 allows
            one: of few samples, one that lies on the threshold says nothing.
        max_new_misses: defective samples that full precision finds and the artifact does not.
        min_mask_agreement: sum of intersections over sum of unions with the masks of full precision, 0..1.
        max_f1_drop: how far the F1 of the verdicts may fall below full precision's, 0..1.
        max_seg_recall_drop: the same for Seg_Recall; not judged where no defective sample has a mask.

    Raises:
        InputError: a limit that no row could keep or that is not a number.
    """

    max_flip_share: float | None = 0.005
    max_new_misses: int | None = 0
    min_mask_agreement: float | None = 0.97
    max_f1_drop: float | None = 0.005
    max_seg_recall_drop: float | None = 0.005

    def __post_init__(self) -> None:
        for name in _SHARES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:  # NaN fails both comparisons
                raise InputError(f"budget: {name} is not a share", wanted="0 to 1", got=value)
        if self.max_new_misses is not None and self.max_new_misses < 0:
            raise InputError("budget: max_new_misses is negative", wanted=">= 0", got=self.max_new_misses)

    def judge(self, row: Mapping[str, Any]) -> list[str]:
        """The limits that `row` (one of `artifacts` in `parity.json`) breaks, one sentence each."""
        n, flips = int(row["n"]), int(row["flips"])
        broken = []
        if self.max_flip_share is not None:
            allowed = _allowed(self.max_flip_share, n)
            if not n or flips > allowed:
                broken.append(f"{flips} of {n} verdicts flipped, allowed {allowed}")
        if self.max_new_misses is not None and row["new_misses"] > self.max_new_misses:
            broken.append(f"{row['new_misses']} new misses, allowed {self.max_new_misses}")
        for value, least, label in self._measured(row):
            if value < least:
                sign = "" if label == MASKS else "+"
                broken.append(f"{label} {value:{sign}.3f}, wanted at least {least:{sign}.3f}")
        return broken

    def not_judged(self, row: Mapping[str, Any]) -> list[str]:
        """The limits for which the data set has nothing to judge, one sentence each.

        Full precision calls no sample defective, or no defective sample has a mask: nothing that an artifact changed.
        """
        return [
            f"{label}: nothing to measure it on"
            for value, _, label in self._measured(row)
            if math.isnan(value)
        ]

    def _measured(self, row: Mapping[str, Any]) -> list[tuple[float, float, str]]:
        """Value (NaN: not measured), least allowed value and name of each limit that is set, counts left out."""
        limits = (
            (row["mask_agreement_iou"], self.min_mask_agreement, 1, MASKS),
            (row["delta"]["f1"], self.max_f1_drop, -1, "change of F1"),
            (row["delta"]["seg_recall"], self.max_seg_recall_drop, -1, "change of Seg_Recall"),
        )
        return [
            (_number(value), sign * limit, label) for value, limit, sign, label in limits if limit is not None
        ]

    def limits(self) -> list[str]:
        """The limits that are set, for people."""
        flips = "no flips" if self.max_flip_share == 0 else "flips at most {:.1%} of the samples, or one"
        texts = (
            (self.max_flip_share, flips),
            (self.max_new_misses, "new misses at most {}"),
            (self.min_mask_agreement, "mask agreement at least {:.3f}"),
            (self.max_f1_drop, "F1 falls by at most {:.3f}"),
            (self.max_seg_recall_drop, "Seg_Recall falls by at most {:.3f}"),
        )
        return [text.format(limit) for limit, text in texts if limit is not None]


def _allowed(share: float, n: int) -> int:
    """Flips of `n` samples that `share` allows."""
    return max(1, math.floor(share * n + 1e-9)) if share else 0


def refuse_decide(samples: Sequence[Sample], use: str) -> None:
    """Split `decide` bounds the miss rate of the verdicts, and does so only as long as nothing is chosen by it.

    Raises:
        InputError: one of `samples` is of that split; `use` says what they were wanted for.
    """
    kept = next((sample for sample in samples if sample.split == DECIDE), None)
    if kept is not None:
        raise InputError(
            f"split `{DECIDE}` is kept for the guarantee on the miss rate and is no data for {use}",
            wanted="another split, such as val or test",
            got=f"{kept.id} (row {kept.row})",
        )


def configure_budget(parser: ArgumentParser) -> None:
    """Add the budget's options to a verb."""
    default = Budget()
    group = parser.add_argument_group(
        "budget: an artifact that breaks a limit fails, exit code 3; `none` lifts a limit"
    )
    for option, metavar, kind, value, what in (
        (
            "--max-flips",
            "SHARE",
            float,
            default.max_flip_share,
            "verdicts that may flip, share of the samples",
        ),
        ("--max-new-misses", "N", int, default.max_new_misses, "defects that may be newly missed"),
        ("--min-mask-agreement", "IOU", float, default.min_mask_agreement, "least mask agreement, 0 to 1"),
        ("--max-f1-drop", "X", float, default.max_f1_drop, "how far F1 may fall"),
        ("--max-seg-recall-drop", "X", float, default.max_seg_recall_drop, "how far Seg_Recall may fall"),
    ):
        group.add_argument(
            option, type=_limit(kind), default=value, metavar=metavar, help=f"{what} ({value})"
        )


def _limit(kind: type[float] | type[int]) -> Callable[[str], float | int | None]:
    """Reads a number of this kind, or `none`."""

    def read(text: str) -> float | int | None:
        if text == "none":
            return None
        try:
            return kind(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r}: wanted a number, or none for no limit") from None

    return read


def budget_from(arguments: Namespace) -> Budget:
    """The budget that `configure_budget`'s options say."""
    return Budget(
        max_flip_share=arguments.max_flips,
        max_new_misses=arguments.max_new_misses,
        min_mask_agreement=arguments.min_mask_agreement,
        max_f1_drop=arguments.max_f1_drop,
        max_seg_recall_drop=arguments.max_seg_recall_drop,
    )


def _number(value: float | None) -> float:
    """A row from a JSON file has null where it had NaN."""
    return math.nan if value is None else float(value)
