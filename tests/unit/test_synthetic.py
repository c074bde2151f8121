"""The procedural surfaces: deterministic, group-aware, mostly good, with defects that can be seen."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import InputError
from edge.images import read_image
from edge.samples import dataset_digest
from quantize.data.dataset import open_dataset, read_mask
from quantize.data.synthetic import plan_parts, write_surfaces


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    return write_surfaces(tmp_path_factory.mktemp("data") / "surfaces", count=150, size=64, seed=3)


def test_is_a_valid_data_set_without_findings(surfaces):
    dataset = open_dataset(surfaces)
    assert len(dataset.samples) == 150 and not dataset.findings and dataset.channels == 1
    assert {s.defect_type for s in dataset.split("train")} == {"good", "scratch", "pit", "stain"}
    for split in ("val", "test"):
        assert {s.defective for s in dataset.split(split)} == {True, False}
    share = sum(s.defective for s in dataset.samples) / 150
    assert 0.18 <= share <= 0.32


def test_follows_from_the_seed(surfaces, tmp_path):
    again = write_surfaces(tmp_path / "again", count=150, size=64, seed=3)
    other = write_surfaces(tmp_path / "other", count=150, size=64, seed=4)
    digests = [dataset_digest(list(open_dataset(folder).samples)) for folder in (surfaces, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_photographs_of_a_part_stay_together(surfaces):
    splits: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for sample in open_dataset(surfaces).samples:
        splits.setdefault(sample.group, set()).add(sample.split)
        sizes[sample.group] = sizes.get(sample.group, 0) + 1
    assert all(len(found) == 1 for found in splits.values())
    assert max(sizes.values()) == 2


def test_a_defect_stands_out_of_its_surroundings(surfaces):
    contrasts, areas = [], []
    for sample in open_dataset(surfaces).samples:
        if sample.defective:
            image, mask = read_image(sample.image).astype(float), read_mask(sample)
            contrasts.append(abs(image[mask].mean() - image[~mask].mean()) / image[~mask].std())
            areas.append(mask.mean())
    assert np.median(contrasts) > 1.5
    assert min(areas) > 0.0008 and max(areas) < 0.35
    assert max(areas) > 20 * min(areas)  # a long tail


def test_rgb(tmp_path):
    dataset = open_dataset(write_surfaces(tmp_path / "rgb", count=30, size=48, seed=0, channels=3))
    assert dataset.channels == 3
    assert read_image(dataset.samples[0].image).shape == (48, 48, 3)


def test_refuses_to_write_over_a_folder(surfaces):
    with pytest.raises(InputError, match="exists already"):
        write_surfaces(surfaces, count=3, size=48)


@pytest.mark.parametrize("count", [1, 7, 60])
def test_plans_as_many_as_asked_for(count):
    assert sum(plan.photographs for plan in plan_parts(count, 0)) == count
