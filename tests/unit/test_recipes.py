"""Recipes are compared on parts that no training saw, and `test` stays shut."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest

from benchmarks.recipes.__main__ import changed
from benchmarks.recipes.folds import FOLDS, make_folds
from benchmarks.recipes.report import rows
from benchmarks.recipes.table import DEFAULT, RECIPES, Recipe
from edge.samples import read_samples
from quantize.training.config import TrainingConfig
from tests.tiny_run import write_dataset


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    data = write_dataset(folder / "data")
    return data, make_folds(data, folder / "work")


def test_every_part_of_train_and_val_is_held_out_once_and_test_never_appears(folds):
    data, folders = folds
    held = defaultdict(list)
    for index, folder in enumerate(folders):
        samples = read_samples(folder)
        assert {sample.split for sample in samples} == {"train", "val"}
        sides = {split: {s.group for s in samples if s.split == split} for split in ("train", "val")}
        assert not sides["train"] & sides["val"]
        for sample in samples:
            if sample.split == "val":
                held[sample.id].append(index)
    wanted = {s.id for split in ("train", "val") for s in read_samples(data, split)}
    assert len(folders) == FOLDS and set(held) == wanted
    assert all(len(places) == 1 for places in held.values())


def test_groups_that_look_alike_are_held_out_together(tmp_path):
    data = write_dataset(tmp_path / "data")
    table = (data / "samples.csv").read_text().splitlines()
    samples = [s for split in ("train", "val") for s in read_samples(data, split)]
    # The same picture under another name and in another group.
    twin = data / "images" / "twin.pgm"
    twin.write_bytes(samples[0].image.read_bytes())
    header = table[0].split(",")
    first = dict(zip(header, next(line for line in table[1:] if samples[0].id in line).split(",")))
    first |= {"image": "images/twin.pgm", "group": "another"}
    (data / "samples.csv").write_text("\n".join([*table, ",".join(first[name] for name in header)]) + "\n")
    for folder in make_folds(data, tmp_path / "work"):
        split = {sample.id: sample.split for sample in read_samples(folder)}
        assert split["images/twin.pgm"] == split[samples[0].id]


def test_a_recipe_changes_what_it_names_and_nothing_else():
    config = changed(TrainingConfig(), {"batch_size": 4, "loss.center": 1.0, "balance.kind": "fixed"})
    assert (config.batch_size, config.loss.center, config.balance.kind) == (4, 1.0, "fixed")
    assert config.loss.mask_bce == TrainingConfig().loss.mask_bce
    with pytest.raises(KeyError, match="colour"):
        changed(TrainingConfig(), {"loss.colour": 1})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.id)
def test_every_recipe_is_one(recipe):
    assert (changed(TrainingConfig(), recipe.changes) == TrainingConfig()) == (not recipe.changes)
    assert recipe.changes or recipe.commit or recipe.id == DEFAULT
    assert recipe.against in {"", *(other.id for other in RECIPES)}


def test_differences_are_paired_and_what_is_missing_says_so(tmp_path):
    (tmp_path / "made").mkdir()
    for fold in range(FOLDS):
        for name, noise in (("good", 0.2), ("bad", 4.0)):
            write_record(tmp_path, name, fold, noise)
    recipes = [Recipe("good", "good", {}), Recipe("bad", "bad", {"seed": 1}, "good"), Recipe("none", "none")]
    found = {row["id"]: row for row in rows(tmp_path, recipes)}
    assert found["good.ap"]["value"] == 1 and found["bad.ap"]["value"] < 0.9
    worse = found["bad.ap.minus.good"]
    assert worse["value"] < 0 and "not distinguishable" not in worse["note"]
    assert "not distinguishable" in found["bad.positive_iou.minus.good"]["note"]
    assert found["none.ap"]["value"] is None and found["none.ap"]["note"] == "not run"


def write_record(work, name, fold, noise):
    random = np.random.default_rng(fold)
    n = 60
    defective = np.arange(n) < 30
    table = {
        "sample": [f"{fold}-{i}" for i in range(n)],
        "group": [f"{fold}-{i // 2}" for i in range(n)],
        "defect_type": ["crack" if bad else "" for bad in defective],
        "defective": defective.tolist(),
        "score": (2.0 * defective + noise * random.standard_normal(n)).tolist(),
        "verdict": defective.tolist(),
        "known": [True] * n,
        "intersection": (5.0 * defective).tolist(),
        "predicted": (8.0 * defective).tolist(),
        "truth": (10.0 * defective).tolist(),
        "pixels": [100.0] * n,
    }
    record = {"recipe": name, "fold": fold, "seed": 0, "training": {"epochs": 2}, "table": table}
    (work / "made" / f"{name}-{fold}.json").write_text(json.dumps(record))
