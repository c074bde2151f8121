"""The recipes that were compared: what each changes of the one that they all start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """`changes` are fields of `TrainingConfig` (`outer.inner` for those inside); it is held `against` another.

    What needs code that is gone names the `commit` that has it: there it is recipe `default`, and its records are
    taken from there.
    """

    id: str
    what: str
    changes: dict[str, Any] = field(default_factory=dict)
    against: str = ""
    commit: str | None = None


DEFAULT = "default"
FIXED = {"balance.kind": "fixed"}
WIDE = {
    "augmentation.affine_share": 0.9,
    "augmentation.scale": 0.35,
    "augmentation.rotation_deg": 15.0,
    "augmentation.shift": 0.15,
}
EIGHT = {"batch_size": 8, "rate": 2e-3, "encoder_rate": 2e-4}

RECIPES = (
    Recipe(DEFAULT, "what `edgeqc train` does"),
    Recipe(
        "sees-masks", "the verdict pools encoder, decoder and mask", {}, against=DEFAULT, commit="d60b68d"
    ),
    Recipe("frozen", "seven blocks of the encoder frozen in place of three", {"frozen_blocks": 7}, DEFAULT),
    Recipe("fast", "encoder at a third of the rate in place of a tenth", {"encoder_rate": 1e-3}, DEFAULT),
    Recipe("eight", "batches of 8, rates two thirds", EIGHT, DEFAULT),
    Recipe("fixed", "losses one to one", FIXED, DEFAULT),
    Recipe("wide", "scale 0.35, 15 degrees, shift 0.15, on 0.9 of the tiles", WIDE, DEFAULT),
    Recipe("center", "the middle of a defect counts twice", {"loss.center": 1.0}, DEFAULT),
    Recipe("synthetic", "synthetic defects on a quarter of the good tiles", {"defects.share": 0.25}, DEFAULT),
)
