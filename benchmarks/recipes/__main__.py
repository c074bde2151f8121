"""`make bench-recipes`: train each recipe on two thirds of the parts of `train` and `val`, three times, and compare.

`val` of the tile photographs has ten defective parts, which cannot tell recipes apart; all held-out thirds together
have sixty. `test` is never opened. Resumes; what is missing says `not run`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import results_file
from benchmarks.recipes.folds import FOLDS, make_folds
from benchmarks.recipes.report import rows
from benchmarks.recipes.table import RECIPES, Recipe
from edge.folders import write_json

EPOCHS = 12


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    options = _options(words)
    folders = make_folds(options.data, options.work)
    for fold in options.folds:
        for recipe in options.recipes:
            if recipe.commit is None and not options.only_report:
                make(recipe, folders[fold], fold, options)
    made = rows(options.work, RECIPES)
    print(results_file.write("recipes", "make bench-recipes", [options.seed], made))
    return 0


def make(recipe: Recipe, data: Path, fold: int, options: argparse.Namespace) -> None:
    """Train and answer for the held-out third, unless that was done; keeps the answers and removes nothing."""
    from benchmarks.quality.sample_table import tabulate
    from edge.predictions import predict
    from edge.samples import read_samples
    from quantize.reference import open_run
    from quantize.training.config import TrainingConfig
    from quantize.training.job import Job, train

    label = f"{recipe.id}-fold{fold}-seed{options.seed}-{options.epochs}"
    record = options.work / "made" / f"{label}.json"
    if record.is_file():
        return
    run = options.work / "runs" / label
    if not run.exists():
        config = TrainingConfig(epochs=options.epochs, time_limit_min=0, seed=options.seed)
        train(
            Job(
                data=data,
                out=run,
                model={"name": "sample-centric", "size": "small"},
                input_size=(options.input_size, options.input_size),
                pretrained=options.pretrained,
                config=changed(config, recipe.changes),
            )
        )
    samples = read_samples(data, "val")
    with open_run(run) as inspector:
        table = tabulate(predict(inspector, samples), samples)
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        record,
        {
            "recipe": recipe.id,
            "fold": fold,
            "seed": options.seed,
            "commit": results_file.commit(),
            "training": facts["training"],
            "model": facts["model"],
            "history": metrics["history"],
            "table": table.as_dict(),
        },
    )


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A dataclass with some of its fields, and those of the dataclasses in it (`outer.inner`), replaced."""
    known = {field.name for field in fields(config)}
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if head not in known:
            raise KeyError(f"{type(config).__name__} has no {head}")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    for head, part in inner.items():
        assert is_dataclass(getattr(config, head)), head
        own[head] = changed(getattr(config, head), part)
    return replace(config, **own)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    known = {recipe.id: recipe for recipe in RECIPES}

    def recipes_named(text: str) -> list[Recipe]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: wanted some of {', '.join(known)}")
        return [known[name] for name in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/datasets/mtd"))
    parser.add_argument("--work", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--pretrained", default=os.environ.get("EDGEQC_PRETRAINED", "../shared/pretrained"))
    parser.add_argument(
        "--recipes", type=recipes_named, default=list(RECIPES), help=f"some of {','.join(known)}"
    )
    parser.add_argument(
        "--folds",
        type=lambda text: [int(name) for name in text.split(",")],
        default=list(range(FOLDS)),
        help="some of 0,1,2",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--input-size", type=int, default=256)
    parser.add_argument("--only-report", action="store_true", help="train nothing, write what is there")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
