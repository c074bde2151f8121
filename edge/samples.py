"""The data set folder: `samples.csv` with columns `image,mask,defective,split` and optionally
`group,defect_type`. Read with the standard library, so that a camera can predict on a data set by itself."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

from edge.backend import entry_points
from edge.errors import InputError
from edge.folders import sha256

TABLE = "samples.csv"
READER_GROUP = "edgeqc.readers"
REQUIRED = ("image", "mask", "defective", "split")
# The split that only bounds the miss rate of the verdicts: whatever else uses it makes that bound worthless.
DECIDE = "decide"


@dataclass(frozen=True)
class Sample:
    """One photograph of a part.

    Attributes:
        id: the image's path relative to the data set, as written in the table.
        mask: mask file, or None (good, or not labelled).
        group: ties photographs of the same part together; the id itself where the table has none.
        row: line in `samples.csv`, counted from 1 with the header; 0 where a reader of another layout made it.
    """

    id: str
    image: Path
    mask: Path | None
    defective: bool
    split: str
    group: str
    defect_type: str
    row: int

    @property
    def where(self) -> str:
        """The place to look for it, for messages."""
        return f"{TABLE} row {self.row}" if self.row else self.id


def read_samples(folder: str | Path, split: str | None = None) -> list[Sample]:
    """Read and check the table; with `split`, return that split only (the whole table is checked even so).

    A folder without the table is shown to the readers of other layouts (entry-point group `edgeqc.readers`).

    Raises:
        InputError: naming the row: a missing column or file, a bad value, an image listed twice, a group in
            two splits; or no sample in `split`.
    """
    folder = Path(folder)
    samples = read_rows(folder)
    _check_table(folder, samples)
    if split is None:
        return samples
    chosen = [sample for sample in samples if sample.split == split]
    if not chosen:
        there = ", ".join(sorted({sample.split for sample in samples})) or "an empty table"
        raise InputError(
            f"{folder} has no sample in split `{split}`", wanted="a split of the data set", got=there
        )
    return chosen


def read_rows(folder: Path) -> list[Sample]:
    """Read every row by itself: images listed twice and groups in two splits are left to be found.

    Raises:
        InputError: naming the row: a missing column or file, a bad value.
    """
    table = folder / TABLE
    if not table.is_file():
        for point in entry_points(READER_GROUP):
            found: list[Sample] | None = point.load()(folder)
            if found is not None:
                return found
        raise InputError(
            f"{folder} is not a data set",
            wanted=f"a folder with {TABLE}, or a published layout",
            got="no such file",
            next_step="docs/data.md has both",
        )
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in REQUIRED if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{table} lacks columns", wanted=",".join(REQUIRED), got=",".join(reader.fieldnames or ())
                )
            return [_sample(folder, reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InputError(f"{table} is not a CSV file in UTF-8", got=str(exc)) from exc


def _sample(folder: Path, row: int, cells: dict[str, str | None]) -> Sample:
    def fail(problem: str, wanted: object = None, got: object = None) -> InputError:
        return InputError(f"{folder / TABLE} row {row}: {problem}", wanted=wanted, got=got)

    def text(column: str) -> str:
        return (cells.get(column) or "").strip()

    name, mask = text("image"), text("mask")
    if not name:
        raise fail("no image")
    for path in filter(None, (name, mask)):
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise fail("a path leaves the data set", wanted="a relative path", got=path)
        try:
            there = (folder / path).is_file()
        except OSError as exc:  # a name that the file system does not take
            raise fail("a path that cannot be opened", got=exc.strerror) from exc
        if not there:
            raise fail("a file is missing", wanted=path, got="no such file")
    if text("defective") not in ("0", "1"):
        raise fail("`defective` is not 0 or 1", got=repr(text("defective")))
    if not text("split"):
        raise fail("no split", wanted="train, val, test or another name")
    return Sample(
        id=name,
        image=folder / name,
        mask=folder / mask if mask else None,
        defective=text("defective") == "1",
        split=text("split"),
        group=text("group") or name,
        defect_type=text("defect_type"),
        row=row,
    )


def _check_table(folder: Path, samples: list[Sample]) -> None:
    first: dict[str, Sample] = {}
    groups: dict[str, Sample] = {}
    for sample in samples:
        twin = first.setdefault(sample.id, sample)
        if twin is not sample:
            raise InputError(
                f"{folder / sample.where}: image {sample.id} is listed already in row {twin.row}"
            )
        other = groups.setdefault(sample.group, sample)
        if other.split != sample.split:
            raise InputError(
                f"{folder / sample.where}: group {sample.group} is in two splits",
                wanted=f"split {other.split} as {other.where}",
                got=sample.split,
                next_step="photographs of the same part belong in one split",
            )


def dataset_digest(samples: list[Sample]) -> str:
    """SHA-256 over ids, labels, splits and the bytes of images and masks, in table order."""
    digest = hashlib.sha256()
    for s in samples:
        parts = (
            s.id,
            str(int(s.defective)),
            s.split,
            s.group,
            sha256(s.image),
            sha256(s.mask) if s.mask else "",
        )
        digest.update("\x1f".join(parts).encode() + b"\n")
    return digest.hexdigest()
