"""``edgeqc data check``: what in a data set would flatter, mislead or stop a training.

Everything is listed, where ``open_dataset`` stops at the first. A *failure* makes measured numbers wrong; a
*remark* deserves a look.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import InputError
from edge.folders import sha256
from edge.images import read_image
from edge.preprocess import UInt8Array
from edge.progress import progress
from edge.samples import TABLE, Sample, read_rows
from quantize.data.dataset import Dataset, read_mask
from quantize.data.layouts import find_layout
from quantize.data.likeness import find_pairs, reduce
from quantize.data.sizing import InputChoice, choose_input, thickest

FAILURE, REMARK = "failure", "remark"
PROBLEMS_NAMED = 8
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Case:
    """Samples that a finding is about, together; ``note`` says how, for a pair its likeness."""

    samples: tuple[Sample, ...]
    note: str = ""
    likeness: float | None = None


@dataclass(frozen=True)
class CheckFinding:
    """One kind of finding: ``level`` is ``failure`` or ``remark``, ``text`` says what it is and why it matters."""

    kind: str
    level: str
    text: str
    cases: tuple[Case, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "level": self.level,
            "count": len(self.cases),
            "text": self.text,
            "cases": [
                {"samples": [s.id for s in case.samples], "likeness": case.likeness, "note": case.note}
                for case in self.cases
            ],
        }


@dataclass(frozen=True)
class Photograph:
    """What was measured of one sample. ``size`` is (width, height); area and thickness are of its mask."""

    sample: Sample
    size: tuple[int, int]
    channels: int
    file_digest: str
    pixel_digest: str
    defect_pixels: int | None
    thickness: float | None


@dataclass(frozen=True)
class Check:
    """What was found. ``choice`` is the input that training would take; None without a split ``train``."""

    folder: Path
    layout: str
    photographs: tuple[Photograph, ...]
    findings: tuple[CheckFinding, ...]
    choice: InputChoice | None

    @property
    def passed(self) -> bool:
        return not any(finding.level == FAILURE for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The ``--json`` of ``edgeqc data check``; keys in ``docs/data.md``."""
        return {
            "data": str(self.folder),
            "layout": self.layout,
            "n": len(self.photographs),
            "passed": self.passed,
            "splits": statistics(self.photographs),
            "findings": [finding.as_dict() for finding in self.findings],
            "input": None if self.choice is None else self.choice.as_dict(),
        }


def check_dataset(folder: str | Path) -> Check:
    """Read all of a data set and look for what is wrong with it.

    Raises:
        InputError: a row, or files that cannot be read; the first ones are named and all are counted.
    """
    root = Path(folder)
    samples = read_rows(root)
    if not samples:
        raise InputError(f"{root} has no sample", wanted="at least one row")
    photographs: list[Photograph] = []
    small: list[Any] = []
    large: list[UInt8Array] = []
    problems: list[str] = []
    for sample in progress(samples, "reading"):
        try:
            image = read_image(sample.image)
            photographs.append(_measure(sample, image))
        except InputError as error:
            got = "" if error.got is None else f" ({error.got})"
            problems.append(f"{sample.where}: {error.what}{got}")
            continue
        pictures = reduce(image)
        small.append(pictures[0])
        large.append(pictures[1])
    if problems:
        more = f"\n  and {len(problems) - PROBLEMS_NAMED} more" if len(problems) > PROBLEMS_NAMED else ""
        raise InputError(
            f"{len(problems)} of {len(samples)} samples cannot be read",
            got="\n  ".join(problems[:PROBLEMS_NAMED]) + more,
            next_step="repair or remove them, then check again",
        )
    shapes = [(p.size[1], p.size[0]) for p in photographs]
    pairs = find_pairs(small, large, shapes, [sample.group for sample in samples])
    alike = [
        Case((samples[pair.first], samples[pair.second]), pair.turn, round(pair.likeness, 3))
        for pair in pairs
    ]
    layout = None if (root / TABLE).is_file() else find_layout(root)
    findings = [*_table(samples), *_copies(photographs), *_alike(alike, photographs), *_masks(photographs)]
    if layout is not None:
        findings.append(CheckFinding("layout", REMARK, layout.NOTE, ()))
    findings.sort(key=lambda finding: finding.level != FAILURE)
    return Check(
        folder=root,
        layout="native" if layout is None else layout.TITLE,
        photographs=tuple(photographs),
        findings=tuple(f for f in findings if f.cases or f.kind == "layout"),
        choice=_choice(root, photographs),
    )


def statistics(photographs: Sequence[Photograph]) -> dict[str, dict[str, Any]]:
    """Of each split: counts by label and defect type, groups, image sizes, defect area and thickness quartiles."""
    table: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(p.sample.split for p in photographs):
        part = [p for p in photographs if p.sample.split == split]
        marked = [p for p in part if p.defect_pixels]
        sides = np.asarray([p.size for p in part])
        defective = sum(p.sample.defective for p in part)
        table[split] = {
            "n": len(part),
            "good": len(part) - defective,
            "defective": defective,
            "groups": len({p.sample.group for p in part}),
            "masks": sum(p.sample.mask is not None for p in part),
            "channels": sorted({p.channels for p in part}),
            "defect_types": dict(sorted(Counter(p.sample.defect_type or "not named" for p in part).items())),
            "width": [int(np.quantile(sides[:, 0], q)) for q in (0, 0.5, 1)],
            "height": [int(np.quantile(sides[:, 1], q)) for q in (0, 0.5, 1)],
            "defect_pixels": _quartiles([float(p.defect_pixels or 0) for p in marked]),
            "defect_thickness": _quartiles([float(p.thickness or 0) for p in marked]),
        }
    return table


def _quartiles(values: Sequence[float]) -> list[float] | None:
    return [round(float(np.quantile(values, q)), 1) for q in QUARTILES] if values else None


def _measure(sample: Sample, image: UInt8Array) -> Photograph:
    height, width = image.shape[:2]
    pixels = thickness = None
    if sample.mask is not None:
        mask = read_mask(sample)
        if mask.shape != image.shape[:2]:
            raise InputError(
                "the mask has another size than its image",
                got=f"{mask.shape[1]} x {mask.shape[0]}, not {width} x {height}",
            )
        pixels, thickness = int(np.count_nonzero(mask)), thickest(mask)
    elif not sample.defective:
        pixels = 0
    return Photograph(
        sample=sample,
        size=(width, height),
        channels=3 if image.ndim == 3 else 1,
        file_digest=sha256(sample.image),
        pixel_digest=hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).data).hexdigest(),
        defect_pixels=pixels,
        thickness=thickness,
    )


def _choice(root: Path, photographs: Sequence[Photograph]) -> InputChoice | None:
    samples = tuple(p.sample for p in photographs)
    if not any(sample.split == "train" for sample in samples):
        return None
    channels = max(p.channels for p in photographs)
    return choose_input(Dataset(root, samples, "", (), channels, tuple(p.size for p in photographs)))


def _table(samples: Sequence[Sample]) -> list[CheckFinding]:
    """What the table says against itself."""
    by_id: dict[str, list[Sample]] = defaultdict(list)
    by_group: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_id[sample.id].append(sample)
        by_group[sample.group].append(sample)
    twice = [Case(tuple(same), "rows " + ", ".join(str(s.row) for s in same)) for same in by_id.values()]
    across = [
        Case(tuple(same), f"group {group}: " + ", ".join(sorted({s.split for s in same})))
        for group, same in by_group.items()
        if len({s.split for s in same}) > 1
    ]
    return [
        CheckFinding(
            "listed-twice",
            FAILURE,
            "an image is in several rows",
            tuple(c for c in twice if len(c.samples) > 1),
        ),
        CheckFinding(
            "group-in-two-splits", FAILURE, "photographs of one part are in several splits", tuple(across)
        ),
    ]


def _copies(photographs: Sequence[Photograph]) -> list[CheckFinding]:
    """Files with the same bytes or the same pixels, and what their labels and splits say of each other."""
    same: dict[str, list[Photograph]] = defaultdict(list)
    for photograph in photographs:
        same[photograph.pixel_digest].append(photograph)
    leaks, contradictions, duplicates = [], [], []
    for photos in same.values():
        if len({p.sample.id for p in photos}) < 2:
            continue
        bytewise = len({p.file_digest for p in photos}) == 1
        case = Case(tuple(p.sample for p in photos), "same bytes" if bytewise else "same pixels", 1.0)
        if len({p.sample.defective for p in photos}) > 1:
            contradictions.append(case)
        if len({p.sample.split for p in photos}) > 1:
            leaks.append(case)
        else:
            duplicates.append(case)
    return [
        CheckFinding(
            "copy-in-two-splits", FAILURE, "the very same picture is in several splits", tuple(leaks)
        ),
        CheckFinding(
            "contradictory-labels",
            FAILURE,
            "the very same picture is called good and defective",
            tuple(contradictions),
        ),
        CheckFinding(
            "duplicate", REMARK, "the very same picture is there twice in a split", tuple(duplicates)
        ),
    ]


def _alike(cases: Sequence[Case], photographs: Sequence[Photograph]) -> list[CheckFinding]:
    """Different groups that show the same part."""
    known = {p.sample: p.pixel_digest for p in photographs}
    by_groups: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in cases:  # the most alike first
        if len({known[sample] for sample in case.samples}) > 1 or case.note:
            by_groups[tuple(sorted({sample.group for sample in case.samples}))].append(case)
    new = [
        replace(same[0], note=", ".join(filter(None, (same[0].note, _more(len(same) - 1)))))
        for same in by_groups.values()
    ]
    across = [case for case in new if _differ(case)]
    within = [case for case in new if not _differ(case)]
    return [
        CheckFinding(
            "leak",
            FAILURE,
            "the same part seems to be in two splits under two groups: join the groups, or move one",
            tuple(across),
        ),
        CheckFinding(
            "one-part-two-groups",
            REMARK,
            "the same part seems to be in two groups of one split; guarantees count it twice",
            tuple(within),
        ),
    ]


def _more(count: int) -> str:
    return f"and {count} more pair{'s' if count > 1 else ''} of these groups" if count else ""


def _differ(case: Case) -> bool:
    return any(a.split != b.split for a, b in combinations(case.samples, 2))


def _masks(photographs: Sequence[Photograph]) -> list[CheckFinding]:
    """Masks against labels, and splits that cannot be learned from."""

    def singles(chosen: Sequence[Photograph]) -> tuple[Case, ...]:
        return tuple(Case((p.sample,)) for p in chosen)

    return [
        CheckFinding(
            "good-with-mask",
            FAILURE,
            "called good, but the mask marks a defect",
            singles([p for p in photographs if not p.sample.defective and p.defect_pixels]),
        ),
        CheckFinding(
            "empty-mask",
            REMARK,
            "defective, but the mask is empty; left out of the mask metrics",
            singles([p for p in photographs if p.sample.defective and p.defect_pixels == 0]),
        ),
        CheckFinding(
            "no-mask",
            REMARK,
            "defective without a mask; trains the verdict only",
            singles([p for p in photographs if p.sample.defective and p.sample.mask is None]),
        ),
    ]
