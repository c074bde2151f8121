"""KolektorSDD2 (Bozic et al., 2021): ``train/10000.png`` with ``train/10000_GT.png``, and the same in ``test``.

Labels are published as masks alone: a photograph is defective where its mask marks something. The archive carries
one pair twice (``train/10301 (copy).png`` and ``train/10301_GT (copy).png``), so only names that are numbers count.
Nothing says which photographs show the same item.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge.samples import Sample
from quantize.data.layouts.published import VAL_SHARE, divide, marks_something, pictures, sample

TITLE = "KolektorSDD2"
IMAGE = re.compile(r"\d+")
PARTS = ("train", "test")
NOTE = f"KolektorSDD2 publishes no val part: {VAL_SHARE} of its train part, by label"


def recognise(folder: Path) -> bool:
    return all((folder / part).is_dir() and any((folder / part).glob("*_GT.png")) for part in PARTS)


def read(folder: Path) -> list[Sample]:
    found: dict[str, list[Sample]] = {}
    for part in PARTS:
        found[part] = []
        for image in pictures(folder / part, ".png"):
            if not IMAGE.fullmatch(image.stem):
                continue
            mask = image.with_name(f"{image.stem}_GT.png")
            defective = marks_something(folder, mask)
            found[part].append(sample(folder, image, mask, defective=defective, split=part))
    return [*divide(found["train"], {"val": VAL_SHARE}, "train"), *found["test"]]
