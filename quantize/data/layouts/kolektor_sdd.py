"""KolektorSDD (Tabernik et al., 2020): ``kos01/Part0.jpg`` with ``kos01/Part0_label.bmp``, 50 items of 7 or 8 parts.

An item is a group. Its authors published three folds and no test part; the folds are Python pickles, which are
never opened here, so the reader splits by item itself. Labels are published as masks alone: a part is defective
where its mask marks something.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge.samples import Sample
from quantize.data.layouts.published import (
    TEST_SHARE,
    VAL_SHARE,
    divide,
    marks_something,
    pictures,
    sample,
    subfolders,
)

TITLE = "KolektorSDD"
ITEM = re.compile(r"kos\d+")
NOTE = (
    "KolektorSDD publishes folds and no test part: split by item here into train, val and test, so numbers"
    " are not those of the published folds"
)


def recognise(folder: Path) -> bool:
    return any(ITEM.fullmatch(item.name) and any(item.glob("Part*.jpg")) for item in subfolders(folder))


def read(folder: Path) -> list[Sample]:
    found = []
    for item in subfolders(folder):
        if not ITEM.fullmatch(item.name):
            continue
        for image in pictures(item, ".jpg"):
            mask = image.with_name(f"{image.stem}_label.bmp")
            defective = marks_something(folder, mask)
            found.append(sample(folder, image, mask, defective=defective, split="train", group=item.name))
    shares = {"test": TEST_SHARE, "val": VAL_SHARE}
    return divide(found, shares, "train")
