"""Which layers stay in float where a target can mix: those that take most damage back for the fewest operations."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from quantize.sensitivity import Sensitivity

# The rest, at least nine tenths of the multiply-accumulates, stays int8.
FLOAT_SHARE = 0.10


@dataclass(frozen=True)
class MixedPlan:
    """What stays in float.

    Attributes:
        layers: names, in the order in which they were chosen.
        nodes: their graph nodes, what `quantize.grid.calibrate` takes as `leave`.
        int8_mac_share: multiply-accumulates of the layers that read and write int8, 0..1.
        damage_removed: part of the damage of all layers, each alone, that the plan takes back, 0..1.
    """

    layers: tuple[str, ...]
    nodes: tuple[str, ...]
    int8_mac_share: float
    damage_removed: float


def plan_mixed(rows: Sequence[Sensitivity], share: float = FLOAT_SHARE) -> MixedPlan:
    """Choose greedily by damage taken back for each multiply-accumulate.

    A tensor stays in float only where the layer that writes it and all that read it do, so these are chosen together.
    What takes back a smaller part of the damage than it takes of the operations is not worth it, within `share` or not.

    Args:
        share: multiply-accumulates that may be float, 0..1.
    """
    place = {row.layer.node: row for row in rows}
    moves = [{row.layer.node} for row in rows] + [{row.layer.node, *row.layer.readers} for row in rows]
    total = _removed(rows, place) or 1.0
    left: dict[str, None] = {}  # a set that keeps its order
    while True:
        spent = sum(place[node].mac_share for node in left)
        best: tuple[float, float] = (0.0, 0.0)
        chosen: list[str] = []
        for move in moves:
            new = sorted(move - left.keys())
            cost = sum(place[node].mac_share for node in new)
            gain = (_removed(rows, left.keys() | move) - _removed(rows, left.keys())) / total
            if not new or spent + cost > share or not gain > cost:
                continue
            worth = gain / cost if cost else math.inf, gain
            if worth > best:
                best, chosen = worth, new
        if not chosen:
            break
        left.update(dict.fromkeys(chosen))
    return MixedPlan(
        layers=tuple(place[node].layer.name for node in left),
        nodes=tuple(left),
        int8_mac_share=1 - spent,
        damage_removed=_removed(rows, left) / total,
    )


def _removed(rows: Sequence[Sensitivity], left: Collection[str]) -> float:
    """Damage that does not happen when the layers `left` stay in float."""
    removed = 0.0
    for row in rows:
        if row.layer.node in left:
            removed += row.weights_damage
            if all(reader in left for reader in row.layer.readers):
                removed += row.activation_damage
    return removed
