"""Which photographs set the ranges of the grid: good parts and the long tail of defects, from `train` alone."""

from __future__ import annotations

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.folders import sha256
from edge.images import read_image
from edge.preprocess import Framing, InputSpec, frame_to_tiles
from edge.progress import progress
from edge.samples import Sample
from quantize.data.dataset import read_mask
from quantize.errors import CalibrationError
from targets.gate import refuse_decide

DEFAULT_COUNT = 128
MINIMUM = 8
THIRDS = 3


@dataclass(frozen=True)
class CalibrationSet:
    """The chosen samples and their framed tiles.

    Attributes:
        samples: in the order in which they are fed.
        tiles: uint8 [T, height, width, channels], raw pixels.
        digest: SHA-256 over the image digests.
    """

    samples: tuple[Sample, ...]
    tiles: npt.NDArray[np.uint8]
    digest: str


def choose(samples: Sequence[Sample], count: int, seed: int = 0) -> list[Sample]:
    """Take half of the samples from the good ones, and the others in turn from every stratum of defects.

    A stratum is a defect type's small, middling or large ones, so that the smallest pore and the widest stain set
    ranges too, however rare they are. Without masks, a type is one stratum.

    Raises:
        CalibrationError: fewer than `MINIMUM` samples, or none of one kind.
        InputError: samples of split `decide`.
    """
    refuse_decide(samples, "calibration")
    good = [sample for sample in samples if not sample.defective]
    defective = [sample for sample in samples if sample.defective]
    if count < MINIMUM or len(samples) < MINIMUM or not good or not defective:
        raise CalibrationError(
            "the calibration samples cannot stand for what the camera will see",
            wanted=f"at least {MINIMUM} samples of split `train`, good and defective ones",
            got=f"{len(samples)} samples, {len(defective)} of them defective, {count} asked for",
        )
    draw = random.Random(seed)
    draw.shuffle(good)
    strata = _strata(defective)
    for members in strata:
        draw.shuffle(members)
    bad = [members[i] for i in range(max(map(len, strata))) for members in strata if i < len(members)]
    half = count // 2
    chosen_bad = bad[: max(half, count - len(good))]
    chosen_good = good[: count - len(chosen_bad)]
    return [*chosen_good, *chosen_bad]


def _strata(defective: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each defect type, those with a mask by size: thirds of the way from least to largest log area."""
    sized: dict[str, list[tuple[float, Sample]]] = defaultdict(list)
    unsized: dict[str, list[Sample]] = defaultdict(list)
    for sample in defective:
        if (area := _log_area(sample)) is None:
            unsized[sample.defect_type].append(sample)
        else:
            sized[sample.defect_type].append((area, sample))
    strata = [unsized[kind] for kind in sorted(unsized)]
    for kind in sorted(sized):
        areas = [area for area, _ in sized[kind]]
        least, largest = min(areas), max(areas)
        thirds: list[list[Sample]] = [[] for _ in range(THIRDS)]
        for area, sample in sized[kind]:
            way = (area - least) / (largest - least) if largest > least else 0.0
            thirds[min(THIRDS - 1, int(THIRDS * way))].append(sample)
        strata += [third for third in thirds if third]
    return strata


def _log_area(sample: Sample) -> float | None:
    """Natural logarithm of the defect's area in pixels; None where no mask says it, or an empty one."""
    pixels = 0 if sample.mask is None else int(read_mask(sample).sum())
    return math.log(pixels) if pixels else None


def frame(chosen: Sequence[Sample], spec: InputSpec, framing: Framing) -> CalibrationSet:
    """Read and frame the chosen samples with the runtime's own code."""
    tiles, digest = [], hashlib.sha256()
    for sample in progress(list(chosen), "calibration images"):
        tiles.append(frame_to_tiles(read_image(sample.image), spec, framing)[0])
        digest.update(bytes.fromhex(sha256(sample.image)))
    return CalibrationSet(tuple(chosen), np.concatenate(tiles), digest.hexdigest())


def refuse_overlap(chosen: Sequence[Sample], judged: Sequence[Sample]) -> None:
    """A gate judged on images that set the ranges proves nothing: refuse by image bytes, not by name.

    Raises:
        CalibrationError: naming the first image that is in both.
    """
    digests = {sha256(sample.image): sample for sample in chosen}
    for sample in judged:
        twin = digests.get(sha256(sample.image))
        if twin is not None:
            raise CalibrationError(
                "an image took part in calibration and would judge the result too",
                wanted="calibration images and gate images without overlap",
                got=f"{twin.id} (row {twin.row}) and {sample.id} (row {sample.row}) are the same bytes",
                next_step="remove the duplicate from samples.csv",
            )
