"""Pseudo masks, and the native data set folder that the segmentation networks learn from."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.images import read_image, write_png
from edge.preprocess import FloatArray, InputSpec
from edge.progress import progress
from edge.samples import TABLE, Sample
from quantize.weak.photographs import Photographs
from quantize.weak.refinement import refine

Mask = NDArray[np.bool_]
IMAGES, MASKS = "photographs", "pseudo-masks"


@dataclass(frozen=True)
class PseudoConfig:
    """When evidence is a find, in logits.

    A defect that covers more than ``broad_share`` of the photograph is broad: a stain or a shadow without an edge,
    that GrabCut would tear into pieces. It is taken as it is, and wider, from ``broad_cut`` on, because evidence
    is strong only where a broad defect is typical.

    ``vote`` is what a network's mask adds to the evidence in the rounds after the first.
    """

    cut: float = 0.0
    broad_share: float = 0.05
    broad_cut: float = -2.0
    vote: float = 1.0


def masks_from_evidence(
    samples: Sequence[Sample], maps: Iterable[FloatArray], spec: InputSpec, config: PseudoConfig
) -> list[Mask]:
    """Masks in frame coordinates, bool, of defective ``samples``; all False where nothing was found.

    ``maps`` are evidence logits H x W on the grid of ``spec``.
    """
    masks = []
    for sample, evidence in zip(progress(samples, "pseudo masks"), maps):
        logits = np.asarray(evidence, np.float32)
        if (logits >= config.cut).mean() > config.broad_share:
            mask = logits >= config.broad_cut
        else:
            tile = Photographs([sample], spec).whole[0]
            mask = refine(np.ascontiguousarray(tile.permute(1, 2, 0).numpy()), logits, config.cut)
        masks.append(_in_frame(mask, sample))
    return masks


def add_votes(maps: Iterable[FloatArray], predicted: Sequence[Mask], vote: float) -> list[FloatArray]:
    """The next round's evidence: ``vote`` more where a network trained on the last masks says defect, less elsewhere.

    ``predicted`` are masks in frame coordinates. Two witnesses err differently: the classifier knows where good
    parts look the same, the network has seen what the cut-out defects have in common.
    """
    joined = []
    for evidence, mask in zip(maps, predicted):
        size = (evidence.shape[1], evidence.shape[0])
        share = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) / np.float32(255)
        joined.append(np.asarray(evidence, np.float32) + vote * (2 * share - 1))
    return joined


def write_dataset(folder: Path, samples: Sequence[Sample], masks: Mapping[str, Mask]) -> None:
    """Write ``samples.csv``, links to the photographs, and a mask for each sample that has one in ``masks``.

    A defective sample without a mask, or with an empty one, trains the verdict only.
    """
    rows: list[dict[str, object]] = []
    for sample in samples:
        image = Path(IMAGES, sample.id)
        _link(sample.image, folder / image)
        mask = masks.get(sample.id)
        name = ""
        if mask is not None and mask.any():
            name = Path(MASKS, sample.id).with_suffix(f"{sample.image.suffix}.png").as_posix()
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_png(folder / name, mask.astype(np.uint8) * np.uint8(255))
        rows.append(
            {
                "image": image.as_posix(),
                "mask": name,
                "defective": int(sample.defective),
                "split": sample.split,
                "group": sample.group,
                "defect_type": sample.defect_type,
            }
        )
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _in_frame(mask: Mask, sample: Sample) -> Mask:
    height, width = read_image(sample.image).shape[:2]
    grey = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(grey >= 128)


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(target.resolve())
    except OSError:  # a file system or an account that cannot link
        shutil.copyfile(target, link)
