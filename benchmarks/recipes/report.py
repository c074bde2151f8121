"""What the records of all folds say: values of each recipe, and its difference to the one it is held against."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import results_file
from benchmarks.quality.bootstrap import DRAWS, difference, group_weights
from benchmarks.quality.sample_table import SampleTable, read_table
from benchmarks.quality.weighted_metrics import measure
from benchmarks.recipes.table import Recipe

METRICS = {"ap": "AP", "auroc": "AUROC", "positive_iou": "IoU on positives"}
RANDOM = 20261121

# (fold, seed, epochs): what two recipes must have in common to be compared.
Place = tuple[int, int, int]
Values = dict[str, NDArray[np.float64]]


def rows(work: Path, recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """A row for each recipe and metric, and for each difference; `not run` where there is no record."""
    found = _measured(work)
    made = []
    for recipe in recipes:
        places = found.get(recipe.id, {})
        note = _places(places)
        if places and recipe.commit:
            note += f"; as of commit {recipe.commit}"
        for metric, name in METRICS.items():
            value = statistics.fmean(float(v[metric][0]) for v in places.values()) if places else None
            made.append(results_file.row(f"{recipe.id}.{metric}", f"{recipe.what}: {name}", value, note=note))
            if recipe.against and places:
                made += _difference(recipe, metric, places, found.get(recipe.against, {}))
    return made


def _difference(
    recipe: Recipe, metric: str, ours: dict[Place, Values], theirs: dict[Place, Values]
) -> list[dict[str, Any]]:
    # Each fold and seed is a training of its own; `difference` draws among them, and the parts within each.
    numbered = {place: number for number, place in enumerate(sorted(ours.keys() & theirs.keys()))}
    split = [
        {number: (float(side[p][metric][0]), side[p][metric][1:]) for p, number in numbered.items()}
        for side in (ours, theirs)
    ]
    found = difference(split[0], split[1], np.random.default_rng(RANDOM))
    if found is None:
        return []
    verdict = "" if found.distinguishable else "; not distinguishable"
    return [
        results_file.row(
            f"{recipe.id}.{metric}.minus.{recipe.against}",
            f"{recipe.id} minus {recipe.against}: {METRICS[metric]}",
            found.value,
            note=f"95 %: {found.low:+.3f} to {found.high:+.3f}{verdict}; over {len(numbered)} trainings each",
        )
    ]


def _measured(work: Path) -> dict[str, dict[Place, Values]]:
    """Recipe -> place -> metric -> float64 [1 + draws]: the value on the fold, then those of the draws."""
    found: dict[str, dict[Place, Values]] = defaultdict(dict)
    for file in sorted((work / "made").glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        table: SampleTable = read_table(record["table"])
        drawn = group_weights(table.group, DRAWS, np.random.default_rng(RANDOM + record["fold"]))
        weights = np.concatenate([np.ones((1, len(table))), drawn])
        place = (record["fold"], record["seed"], record["training"]["epochs"])
        found[record["recipe"]][place] = measure(table, weights)
    return found


def _places(places: dict[Place, Values]) -> str:
    epochs = sorted({place[2] for place in places})
    seeds = sorted({place[1] for place in places})
    folds = sorted({place[0] for place in places})
    return f"folds {folds}, seeds {seeds}, {epochs} epochs" if places else "not run"
