"""DAGM 2007 (Wieler and Hahn): a class's folder, or the folder of ``Class1`` to ``Class10``.

``Class1/Train/0576.PNG``, ``Class1/Train/Label/Labels.txt`` and, for defects, ``Class1/Train/Label/0576_label.PNG``;
the same under ``Test``. ``Labels.txt`` is a line with ``1``, then one line for each photograph: number, defective
(0 or 1), file, whether a mask exists, mask file or 0, with tabs between. Masks are ellipses around the defect, not
its outline. Every photograph is a texture of its own.
"""

from __future__ import annotations

from pathlib import Path

from edge.errors import InputError
from edge.samples import Sample
from quantize.data.layouts.published import VAL_SHARE, check_file, divide, pictures, sample, subfolders

TITLE = "DAGM 2007"
LABELS = "Labels.txt"
PARTS = {"Train": "train", "Test": "test"}
NOTE = f"DAGM 2007 publishes no val part: {VAL_SHARE} of its train part, by class and label"


def recognise(folder: Path) -> bool:
    return bool(_classes(folder))


def _is_class(folder: Path) -> bool:
    return any((folder / part / "Label").is_dir() for part in PARTS)


def _classes(folder: Path) -> list[Path]:
    return [folder] if _is_class(folder) else [each for each in subfolders(folder) if _is_class(each)]


def read(folder: Path) -> list[Sample]:
    found: dict[str, list[Sample]] = {split: [] for split in PARTS.values()}
    for each in _classes(folder):
        for part, split in PARTS.items():
            if (each / part).is_dir():
                found[split] += _part(folder, each, part, split)
    return [*divide(found["train"], {"val": VAL_SHARE}, "train"), *found["test"]]


def _part(root: Path, each: Path, part: str, split: str) -> list[Sample]:
    table = each / part / "Label" / LABELS
    labels = _labels(root, table)
    samples = []
    for image in pictures(each / part, ".png"):
        if image.name not in labels:
            raise InputError(f"{image} is not in {table}", wanted="one line for each photograph")
        defective, name = labels.pop(image.name)
        mask = table.parent / name if defective else None
        kind = "" if each == root else each.name
        defect_type = f"{kind} {'defect' if defective else 'good'}".strip()
        samples.append(sample(root, image, mask, defective=defective, split=split, defect_type=defect_type))
    if labels:
        raise InputError(f"{each / part / next(iter(labels))} is missing", wanted=f"the files of {table}")
    return samples


def _labels(root: Path, table: Path) -> dict[str, tuple[bool, str]]:
    """Of each photograph, by its file name: defective, and the name of its mask file."""
    check_file(root, table)
    labels: dict[str, tuple[bool, str]] = {}
    for number, line in enumerate(table.read_text(encoding="latin-1").splitlines(), start=1):
        cells = line.split()
        if len(cells) < 2:  # the heading, and empty lines
            continue
        plain = len(cells) == 5 and not any("/" in cell or "\\" in cell or cell == ".." for cell in cells)
        if not plain or cells[1] not in ("0", "1"):
            raise InputError(
                f"{table} line {number} cannot be read", wanted="number, 0 or 1, file, 0 or 1, mask", got=line
            )
        labels[cells[2]] = (cells[1] == "1", cells[4])
    return labels
