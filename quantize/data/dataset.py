"""A data set that was checked: every row's files exist, decode and fit each other.

What cannot be trained or measured on is an ``InputError`` that names the row. What can, but deserves a look,
is a finding: counted, reported, and recorded in the RUN folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import InputError
from edge.folders import sha256
from edge.images import read_image
from edge.progress import progress
from edge.samples import TABLE, Sample, dataset_digest, read_samples
from quantize.data.layouts import find_layout

ROWS_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """Something allowed that deserves a look: ``kind`` for programs, ``text`` for people, the samples it is in.

    Without samples it is about the whole data set.
    """

    kind: str
    text: str
    samples: tuple[Sample, ...] = ()

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of ``samples.csv``, 0 for other layouts."""
        return tuple(sample.row for sample in self.samples)

    def __str__(self) -> str:
        if not self.samples:
            return self.text
        native = all(self.rows)
        named = ", ".join(str(s.row) if native else s.id for s in self.samples[:ROWS_NAMED])
        more = f" and {len(self.samples) - ROWS_NAMED} more" if len(self.samples) > ROWS_NAMED else ""
        return f"{len(self.samples)} x {self.text} ({'samples.csv row ' if native else ''}{named}{more})"


@dataclass(frozen=True)
class Dataset:
    """Samples of one folder in the order of ``samples.csv``, and what the check found.

    ``digest`` is ``edge.samples.dataset_digest``: the same digest is the same data.
    ``channels`` is 3 if any image has colours, else 1. ``sizes`` are (width, height) of each sample's image.
    """

    folder: Path
    samples: tuple[Sample, ...]
    digest: str
    findings: tuple[Finding, ...]
    channels: int
    sizes: tuple[tuple[int, int], ...]

    def split(self, name: str) -> list[Sample]:
        """The samples of ``train``, ``val`` or ``test``; ``InputError`` if there are none."""
        chosen = [sample for sample in self.samples if sample.split == name]
        if not chosen:
            raise InputError(
                f"no sample of split {name!r} in {self.folder}",
                wanted=f"rows of samples.csv with split {name}",
                got=", ".join(sorted({sample.split for sample in self.samples})),
            )
        return chosen

    def counts(self) -> dict[str, dict[str, int]]:
        """Good and defective samples of each split."""
        table: dict[str, dict[str, int]] = {}
        for sample in self.samples:
            row = table.setdefault(sample.split, {"good": 0, "defective": 0})
            row["defective" if sample.defective else "good"] += 1
        return table

    def summary(self) -> dict[str, Any]:
        """What a RUN folder records of its data."""
        return {
            "digest": self.digest,
            "counts": self.counts(),
            "findings": [{"kind": f.kind, "count": len(f.samples), "text": str(f)} for f in self.findings],
        }


def open_dataset(folder: str | Path, split: str | None = None, *, masks: bool = True) -> Dataset:
    """Read and check a data set, native or in a published layout, all of it or one split.

    With ``masks=False`` no mask file is opened and no sample has one: what training from labels alone sees.

    Raises ``InputError`` naming the row: a missing column, file or value, an unreadable image, a mask of
    another size than its image, a group in two splits.
    """
    root = Path(folder)
    samples = read_samples(root, split)
    layout = None if (root / TABLE).is_file() else find_layout(root)
    if not masks:
        samples = [replace(sample, mask=None) for sample in samples]
    same_bytes: dict[str, list[Sample]] = defaultdict(list)
    empty: list[Sample] = []
    unlabelled: list[Sample] = []
    contradictory: list[Sample] = []
    channels = 1
    sizes: list[tuple[int, int]] = []
    for sample in progress(samples, "checking the data set"):
        same_bytes[sha256(sample.image)].append(sample)
        image = _read(sample, sample.image)
        channels = max(channels, 3 if image.ndim == 3 else 1)
        sizes.append((image.shape[1], image.shape[0]))
        if sample.mask is None:
            if sample.defective and masks:
                unlabelled.append(sample)
        else:
            mask = read_mask(sample)
            if mask.shape != image.shape[:2]:
                raise InputError(
                    f"{sample.where}: the mask has another size than its image",
                    wanted=f"{image.shape[1]} x {image.shape[0]} ({sample.image.name})",
                    got=f"{mask.shape[1]} x {mask.shape[0]} ({sample.mask.name})",
                )
            if sample.defective and not mask.any():
                empty.append(sample)
            if not sample.defective and mask.any():
                contradictory.append(sample)
    duplicates = [s for same in same_bytes.values() if len(same) > 1 for s in same[1:]]
    findings = [
        None if layout is None else Finding("layout", layout.NOTE),
        _finding("empty-mask", "defective, but the mask is empty; left out of the mask metrics", empty),
        _finding("no-mask", "defective without a mask; trains the verdict only", unlabelled),
        _finding("good-with-mask", "called good, but the mask is not empty", contradictory),
        _finding("duplicate-image", "the same image as an earlier row", duplicates),
    ]
    return Dataset(
        folder=root,
        samples=tuple(samples),
        digest=dataset_digest(samples),
        findings=tuple(f for f in findings if f is not None),
        channels=channels,
        sizes=tuple(sizes),
    )


def read_mask(sample: Sample) -> NDArray[np.bool_]:
    """The ground-truth mask as bool H x W; any non-zero value, in any channel, is defect."""
    assert sample.mask is not None
    mask = _read(sample, sample.mask)
    return np.asarray((mask if mask.ndim == 2 else mask.max(axis=2)) != 0)


def _read(sample: Sample, path: Path) -> NDArray[np.uint8]:
    try:
        return read_image(path)
    except InputError as error:
        raise InputError(
            f"{sample.where}: {error.what}",
            wanted=error.wanted,
            got=error.got,
            next_step=error.next_step,
        ) from error


def _finding(kind: str, text: str, samples: Sequence[Sample]) -> Finding | None:
    return Finding(kind, text, tuple(samples)) if samples else None
