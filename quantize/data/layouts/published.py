"""What the readers of published layouts share: files that may be read, samples, and splits by group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from edge.errors import InputError
from edge.images import read_image
from edge.samples import Sample

VAL_SHARE = Fraction(1, 5)  # of what is not published as test
TEST_SHARE = Fraction(1, 5)  # where no test part is published
SEED = 0
HALF = Fraction(1, 2)


def subfolders(folder: Path) -> list[Path]:
    """The folders in ``folder``, sorted by name, hidden ones left out."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def pictures(folder: Path, *suffixes: str) -> list[Path]:
    """The files in ``folder`` with one of ``suffixes`` (lower case), sorted by name, hidden ones left out."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in suffixes and not entry.name.startswith(".") and not entry.is_dir()
    )


def sample(
    root: Path,
    image: Path,
    mask: Path | None,
    *,
    defective: bool,
    split: str,
    group: str = "",
    defect_type: str = "",
) -> Sample:
    """A sample whose id is the image's path in ``root``; without a group it is one of its own.

    Raises:
        InputError: naming the file: missing, or a link that leaves ``root``.
    """
    for path in (image, *([mask] if mask is not None else [])):
        check_file(root, path)
    name = image.relative_to(root).as_posix()
    return Sample(
        id=name,
        image=image,
        mask=mask,
        defective=defective,
        split=split,
        group=group or name,
        defect_type=defect_type or ("defect" if defective else "good"),
        row=0,
    )


def check_file(root: Path, path: Path) -> None:
    """Raise ``InputError`` unless ``path`` is a file inside ``root``, links followed."""
    if not path.is_file():
        raise InputError(
            f"{path} is missing", wanted="every file of the published layout", next_step="unpack it again"
        )
    if root.resolve() not in path.resolve().parents:
        raise InputError(f"{path} leaves the data set", wanted=f"a file in {root}", got=path.resolve())


def marks_something(root: Path, mask: Path) -> bool:
    """Whether a mask has a pixel that is not zero: the label, where masks are all that was published."""
    check_file(root, mask)
    return bool(np.any(read_image(mask)))


def divide(samples: Sequence[Sample], shares: Mapping[str, Fraction], rest: str) -> list[Sample]:
    """Give ``shares`` of the groups to other splits and the others to ``rest``, alike in every kind of group.

    A group's kind is the set of its defect types. Within a kind, groups are ordered by the hash of their name,
    so the same names give the same splits on every machine and for ever; every k-th of all then goes elsewhere.
    """
    kinds: dict[str, set[str]] = {}
    for one in samples:
        kinds.setdefault(one.group, set()).add(one.defect_type)

    def order(group: str) -> tuple[list[str], str]:
        return sorted(kinds[group]), hashlib.sha256(f"{SEED}/{group}".encode()).hexdigest()

    left, splits = sorted(kinds, key=order), {}
    remaining = Fraction(1)
    for name, share in shares.items():
        now = share / remaining
        chosen = [group for i, group in enumerate(left) if int((i + 1) * now + HALF) > int(i * now + HALF)]
        splits.update(dict.fromkeys(chosen, name))
        left = [group for group in left if group not in splits]
        remaining -= share
    return [replace(one, split=splits.get(one.group, rest)) for one in samples]
