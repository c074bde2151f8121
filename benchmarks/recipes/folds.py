"""Data sets made of `train` and `val` alone, each with another third of the parts held out as its `val`."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from pathlib import Path

from edge.images import read_image
from edge.progress import progress
from edge.samples import Sample, read_samples
from quantize.data.likeness import find_pairs, reduce

FOLDS = 3
SPLITS = ("train", "val")
# The folds' own seed: every recipe is judged on the same parts.
RANDOM = 20261121


def make_folds(data: Path, work: Path) -> list[Path]:
    """A folder for each fold, made once.

    Photographs of one part stay together, and so do groups that look like one part under two names
    (`quantize.data.likeness`). Every defect type is spread evenly over the folds.
    """
    folders = [work / f"fold-{index}" for index in range(FOLDS)]
    if all((folder / "samples.csv").is_file() for folder in folders):
        return folders
    samples = [sample for split in SPLITS for sample in read_samples(data, split)]
    fold_of = _folds(samples, _parts(samples))
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        for inside in data.iterdir():
            if inside.is_dir() and not (folder / inside.name).exists():
                (folder / inside.name).symlink_to(inside.resolve())
        with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["image", "mask", "defective", "split", "group", "defect_type"])
            for sample in samples:
                table.writerow(
                    [
                        sample.id,
                        sample.mask.relative_to(data) if sample.mask else "",
                        int(sample.defective),
                        "val" if fold_of[sample.group] == index else "train",
                        sample.group,
                        sample.defect_type,
                    ]
                )
    return folders


def _parts(samples: list[Sample]) -> dict[str, str]:
    """Group -> the part it belongs to; groups whose photographs show the same are one."""
    part = {sample.group: sample.group for sample in samples}

    def root(group: str) -> str:
        while part[group] != group:
            group = part[group]
        return group

    small, large, shapes = [], [], []
    for sample in progress(samples, "reading photographs"):
        image = read_image(sample.image)
        pictures = reduce(image)
        small.append(pictures[0])
        large.append(pictures[1])
        shapes.append((image.shape[0], image.shape[1]))
    for pair in find_pairs(small, large, shapes, [sample.group for sample in samples]):
        part[root(samples[pair.second].group)] = root(samples[pair.first].group)
    return {group: root(group) for group in part}


def _folds(samples: list[Sample], part: dict[str, str]) -> dict[str, int]:
    """Group -> fold."""
    kind: dict[str, str] = {}
    for sample in samples:
        name = part[sample.group]
        kind[name] = (sample.defect_type if sample.defective else "") or kind.get(name, "")
    of_kind = defaultdict(list)
    for name in sorted(kind):
        of_kind[kind[name]].append(name)
    draw = random.Random(RANDOM)
    fold: dict[str, int] = {}
    place = 0
    for name in sorted(of_kind):
        parts = of_kind[name]
        draw.shuffle(parts)
        for each in parts:
            fold[each], place = place % FOLDS, place + 1
    return {group: fold[name] for group, name in part.items()}
