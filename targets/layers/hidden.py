"""Faults that a tap hides: each tensor tapped by itself, with an eye on the outputs.

A tap changes which operations a runtime fuses. When a program with every tensor tapped is right and the shipped one
is not, the fault lies in a fusion, and the taps have taken it apart. One tap at a time leaves the rest as it ships:

- the outputs become right: the tap *hides* the fault, it splits the fusion;
- the outputs stay wrong and the tapped tensor is right: whatever it is computed from is right, too;
- the outputs stay wrong and the tensor is wrong: the fault lies at it or before it.

The operations at fault are those at or before the first wrong tensor that no right tensor clears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge.preprocess import UInt8Array
from edge.progress import progress
from targets.layers.layer import INPUT, Layer, Steps, apart
from targets.layers.program import OUTPUTS, Side, program

# Tiles on which single taps are tried: those whose answer the taps moved the farthest.
TILES = 3


def search(
    side: Side,
    layers: Sequence[Layer],
    steps: dict[str, float],
    tiles: Sequence[UInt8Array],
    answers: tuple[Sequence[Mapping[str, Steps]], Sequence[Mapping[str, Steps]]],
    limits: Mapping[str, float],
    drift: Mapping[str, float],
) -> dict[str, Any]:
    """Narrow a hidden fault down.

    Args:
        answers: outputs without any tap (wrong) and with all of them (right), for each tile.
        limits: by output, the mean distance in steps up to which two answers are the same.
        drift: by layer, the mean distance in steps of two right programs.

    Returns:
        `suspects`: the operations at fault, in the order in which they run; `hidden_by`: the layers whose tap alone
        makes the answer right; `seen_at`: the first tensor that is wrong while tapped, or None.
    """
    plain, tapped = answers
    moved = [max(_away(plain[i][n], tapped[i][n]) / limits[n] for n in OUTPUTS) for i in range(len(tiles))]
    chosen = [i for i in np.argsort(moved)[::-1][:TILES] if moved[i] > 1]
    with program(side, layers, steps, layers) as all_tapped:
        right = [all_tapped.run(tiles[i]) for i in chosen]
    hiding: list[str] = []
    cleared = {INPUT}  # it is compared exactly, and with every tensor tapped it was right
    wrong: list[str] = []
    before = ancestors(layers)
    single_taps = [layer for layer in layers if layer.name not in (INPUT, *OUTPUTS)]
    for layer in progress(single_taps, "tap by tap"):
        with program(side, layers, steps, [layer]) as single:
            found = [single.run(tiles[i]) for i in chosen]
        if all(_away(a[n], b[n]) <= limits[n] for a, b in zip(found, right) for n in OUTPUTS):
            hiding.append(layer.name)
        elif (
            max(_away(a[layer.name], b[layer.name]) for a, b in zip(found, right))
            <= 1 + 2 * drift[layer.name]
        ):
            cleared |= {layer.name} | before[layer.name]
        else:
            wrong.append(layer.name)
    wrong += [
        name for name in OUTPUTS if any(_away(plain[i][name], tapped[i][name]) > limits[name] for i in chosen)
    ]
    first = min(wrong, key=[layer.name for layer in layers].index)
    at_fault = ({first} | before[first]) - cleared
    return {
        "suspects": [_facts(layer) for layer in layers if layer.name in at_fault],
        "hidden_by": hiding,
        "seen_at": first,
    }


def ancestors(layers: Sequence[Layer]) -> dict[str, set[str]]:
    """For each layer, all the layers that its tensor is computed from; `layers` in the order in which they run."""
    found: dict[str, set[str]] = {}
    for layer in layers:
        found[layer.name] = set(layer.inputs).union(*(found[name] for name in layer.inputs))
    return found


def _away(a: Steps, b: Steps) -> float:
    return float(apart(a, b).mean())


def _facts(layer: Layer) -> dict[str, Any]:
    return {"name": layer.name, "label": layer.label, "operation": layer.operation}
