"""Which photographs set the ranges of the grid: good parts and the long tail of defects, from `train` alone."""

from __future__ import annotations

import hashlib
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
from quantize.errors import CalibrationError
from targets.gate import refuse_decide

DEFAULT_COUNT = 128
MINIMUM = 8


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
    """Take samples in turn from the good ones and from each defect type, good ones as often as all the others.

    Raises:
        CalibrationError: fewer than `MINIMUM` samples, or none of one kind.
        InputError: samples of split `decide`.
    """
    refuse_decide(samples, "calibration")
    strata: dict[tuple[bool, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        strata[sample.defective, sample.defect_type if sample.defective else ""].append(sample)
    if count < MINIMUM or len(samples) < MINIMUM or len({kind for kind, _ in strata}) < 2:
        raise CalibrationError(
            "the calibration samples cannot stand for what the camera will see",
            wanted=f"at least {MINIMUM} samples of split `train`, good and defective ones",
            got=f"{len(samples)} samples, {sum(s.defective for s in samples)} of them defective, {count} asked for",
        )
    shuffled = random.Random(seed)
    for key in sorted(strata):
        shuffled.shuffle(strata[key])
    good = [
        sample for (defective, _), members in sorted(strata.items()) if not defective for sample in members
    ]
    kinds = [members for (defective, _), members in sorted(strata.items()) if defective]
    bad = [members[i] for i in range(max(map(len, kinds))) for members in kinds if i < len(members)]
    half = count // 2
    chosen_bad = bad[: max(half, count - len(good))]
    chosen_good = good[: count - len(chosen_bad)]
    return [*chosen_good, *chosen_bad]


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
