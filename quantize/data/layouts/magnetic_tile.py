"""Magnetic-Tile (Huang et al., 2020): ``MT_Blowhole/Imgs/exp1_num_3191.jpg`` with a ``.png`` mask beside it.

Five folders of defects and ``MT_Free``. A tile was photographed about six times, ``exp1`` to ``exp6``, under numbers
that rise by 10 to 120; which photographs show one tile is not published. A tile begins where the experiment does
not rise or the number rises by more than ``MOST_STEP``. Against a table of tiles for 1,157 of the photographs
this is wrong for 3 of 1,156 neighbours, each time putting two tiles into one group, which cannot leak.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edge.samples import Sample
from quantize.data.layouts.published import (
    TEST_SHARE,
    VAL_SHARE,
    divide,
    pictures,
    sample,
    subfolders,
)

TITLE = "Magnetic-Tile"
KIND = re.compile(r"MT_(\w+)")
NAME = re.compile(r"exp(\d+)_num_(\d+)")
FREE = "free"
MOST_STEP = 120
NOTE = (
    "Magnetic-Tile publishes no splits and no tiles: tiles were told apart by the numbers in the names, and split"
    " here into train, val and test"
)


def recognise(folder: Path) -> bool:
    return any(KIND.fullmatch(kind.name) and (kind / "Imgs").is_dir() for kind in subfolders(folder))


def read(folder: Path) -> list[Sample]:
    images = [
        (image, match[1].lower())
        for kind in subfolders(folder)
        if (match := KIND.fullmatch(kind.name)) and (kind / "Imgs").is_dir()
        for image in pictures(kind / "Imgs", ".jpg")
    ]
    tiles = tell_tiles(image.stem for image, _ in images)
    found = []
    for image, kind in images:
        mask: Path | None = image.with_suffix(".png")
        if kind == FREE and mask is not None and not mask.exists():
            mask = None
        found.append(
            sample(
                folder,
                image,
                mask,
                defective=kind != FREE,
                split="train",
                group=tiles.get(image.stem, ""),
                defect_type=kind,
            )
        )
    return divide(found, {"test": TEST_SHARE, "val": VAL_SHARE}, "train")


def tell_tiles(names: Iterable[str]) -> dict[str, str]:
    """The tile of each name of the form ``exp1_num_3191``; other names are left out."""
    shots = sorted({(int(m[2]), int(m[1]), name) for name in names if (m := NAME.fullmatch(name))})
    tiles: dict[str, str] = {}
    before: tuple[int, int, str] | None = None
    for shot in shots:
        if (
            before is None
            or shot[0] - before[0] > MOST_STEP
            or (shot[1] <= before[1] and shot[0] > before[0])
        ):
            tile = f"tile {shot[0]}"
        tiles[shot[2]] = tile
        before = shot
    return tiles
