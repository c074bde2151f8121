"""MVTec AD (Bergmann et al., 2019): a category's folder, or the folder of all of them.

``train/good/000.png``, ``test/TYPE/000.png`` and ``ground_truth/TYPE/000_mask.png``, where TYPE ``good`` has no
masks. No defective photograph is published for training, and this toolkit learns from defects: those of the test
part are divided over train, val and test. That is not the published protocol, and the reader says so.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from edge.errors import InputError
from edge.samples import Sample
from quantize.data.layouts.published import VAL_SHARE, divide, pictures, sample, subfolders

TITLE = "MVTec AD"
GOOD = "good"
SHARES = {
    "test": Fraction(3, 10),
    "val": Fraction(1, 5),
}  # of the defective photographs; the rest is for train
NOTE = (
    "MVTec AD publishes no defective photograph for training: of those in its test part"
    f" {float(SHARES['test']):.0%} stay, {float(SHARES['val']):.0%} went to val and the rest to train; this is"
    " not the published protocol, and its numbers do not compare with published ones"
)


def recognise(folder: Path) -> bool:
    return bool(_categories(folder))


def _is_category(folder: Path) -> bool:
    return (folder / "train" / GOOD).is_dir() and (folder / "test").is_dir()


def _categories(folder: Path) -> list[Path]:
    return [folder] if _is_category(folder) else [each for each in subfolders(folder) if _is_category(each)]


def read(folder: Path) -> list[Sample]:
    good: list[Sample] = []
    held: list[Sample] = []
    defective: list[Sample] = []
    for category in _categories(folder):
        named = "" if category == folder else f"{category.name}/"
        for image in pictures(category / "train" / GOOD, ".png"):
            good.append(sample(folder, image, None, defective=False, split="train", defect_type=named + GOOD))
        for kind in subfolders(category / "test"):
            for image in pictures(kind, ".png"):
                split, name = "test", named + kind.name
                if kind.name == GOOD:
                    held.append(sample(folder, image, None, defective=False, split=split, defect_type=name))
                    continue
                mask = category / "ground_truth" / kind.name / f"{image.stem}_mask.png"
                defective.append(sample(folder, image, mask, defective=True, split=split, defect_type=name))
    if not defective:
        raise InputError(f"{folder} has no defective photograph", wanted="test/TYPE beside test/good")
    return [*divide(good, {"val": VAL_SHARE}, "train"), *divide(defective, SHARES, "train"), *held]
