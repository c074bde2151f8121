"""The gate: how much an artifact may differ from full precision before it is refused.

A budget is data. Every limit that is set is checked; a limit whose number cannot be measured (no defective
sample, say) counts as broken, because a check that did not run proves nothing.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import InputError
from edge.samples import DECIDE, Sample

_SHARES = ("max_flip_share", "min_mask_agreement", "max_f1_drop", "max_seg_recall_drop")


@dataclass(frozen=True)
class Budget:
    """Limits on one row of `parity.json`; None: no limit.

    Attributes:
        max_flip_share: verdicts that differ from full precision, share of all samples, 0..1.
        max_new_misses: defective samples that full precision finds and the artifact does not.
        min_mask_agreement: sum of intersections over sum of unions with the masks of full precision, 0..1.
        max_f1_drop: how far the F1 of the verdicts may fall below full precision's, 0..1.
        max_seg_recall_drop: the same for Seg_Recall.

    Raises:
        InputError: a limit that no row could keep or that is not a number.
    """

    max_flip_share: float | None = 0.02
    max_new_misses: int | None = None
    min_mask_agreement: float | None = None
    max_f1_drop: float | None = None
    max_seg_recall_drop: float | None = None

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
            share = flips / n if n else math.nan
            if not share <= self.max_flip_share:
                broken.append(
                    f"{flips} of {n} verdicts flipped ({share:.1%}), allowed {self.max_flip_share:.1%}"
                )
        if self.max_new_misses is not None and row["new_misses"] > self.max_new_misses:
            broken.append(f"{row['new_misses']} new misses, allowed {self.max_new_misses}")
        agreement = _number(row["mask_agreement_iou"])
        if self.min_mask_agreement is not None and not agreement >= self.min_mask_agreement:
            broken.append(f"mask agreement {_show(agreement)}, wanted {self.min_mask_agreement:.3f}")
        for limit, key, label in (
            (self.max_f1_drop, "f1", "F1"),
            (self.max_seg_recall_drop, "seg_recall", "Seg_Recall"),
        ):
            change = _number(row["delta"][key])
            if limit is not None and not -change <= limit:
                broken.append(f"{label} changed by {_show(change, '+.3f')}, allowed -{limit:.3f}")
        return broken

    def limits(self) -> list[str]:
        """The limits that are set, for people."""
        texts = (
            (self.max_flip_share, "flips at most {:.1%} of the samples"),
            (self.max_new_misses, "new misses at most {}"),
            (self.min_mask_agreement, "mask agreement at least {:.3f}"),
            (self.max_f1_drop, "F1 falls by at most {:.3f}"),
            (self.max_seg_recall_drop, "Seg_Recall falls by at most {:.3f}"),
        )
        return [text.format(limit) for limit, text in texts if limit is not None]


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
    group = parser.add_argument_group("budget: an artifact that breaks a limit fails, exit code 3")
    group.add_argument(
        "--max-flips", type=float, default=default.max_flip_share, metavar="SHARE",
        help=f"verdicts that may flip, share of the samples ({default.max_flip_share})",
    )  # fmt: skip
    group.add_argument("--max-new-misses", type=int, metavar="N", help="defects that may be newly missed")
    group.add_argument("--min-mask-agreement", type=float, metavar="IOU", help="least mask agreement, 0 to 1")
    group.add_argument("--max-f1-drop", type=float, metavar="X", help="how far F1 may fall")
    group.add_argument("--max-seg-recall-drop", type=float, metavar="X", help="how far Seg_Recall may fall")


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


def _show(value: float, form: str = ".3f") -> str:
    return "not measurable" if math.isnan(value) else format(value, form)
