"""The network's input size and framing, chosen from the training photographs and said in one line.

Ours. The rules, and the evidence for their numbers, are in ``docs/data.md``. Only split ``train`` is looked at,
and nothing depends on the machine, so the same data gives the same input everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import InputError
from edge.preprocess import Framing, InputSpec, place
from quantize.data.dataset import Dataset, read_mask

MULTIPLE = 16  # the coarsest stride of the networks
CELL_PX = 4  # one cell in input pixels: the decoder's finest stride, where a defect is found (the mask is drawn finer)
LEAST_SIDE, MOST_SIDE = 32, 4096
BASE_PIXELS = 256 * 256
MOST_GROWTH = 4  # the largest resized input, in base inputs
MOST_ENLARGED = 2.0  # a side is never enlarged more than this
SMALL_SHARE = 0.25  # "small" are the defects of the smaller quarter of the defective photographs
WANTED_CELLS, LOST_CELLS = 1.0, 0.5
ONE_SHAPE = 1.25  # aspect ratios within this factor count as one shape
UNKNOWN_SCALE = 0.5  # without masks: no less than this scale, as far as the time allows
TILE_OVERLAP = 2 * MULTIPLE
# What a training of 15 minutes on two cores sees, in base inputs, at the 30 images/s of a `small` network.
TRAINING_INPUTS = 15 * 60 * 30
LEAST_EPOCHS, LEAST_TILE_EPOCHS = 6, 1


@dataclass(frozen=True)
class InputChoice:
    """``size`` is (width, height) in pixels; ``explanation`` is one line for people."""

    size: tuple[int, int]
    framing: Framing
    explanation: str

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "size": list(self.size)}


@dataclass(frozen=True)
class Defects:
    """The thickest place of each defective photograph's mask.

    ``thickness`` is in frame pixels and ``sizes`` (width, height) are of the same photographs; float N and
    float N x 2.
    """

    thickness: NDArray[np.float64]
    sizes: NDArray[np.float64]

    def small(self, size: tuple[int, int] | None) -> float:
        """Thickness of the small defects in cells at the input ``size``, at full resolution if None."""
        scale = 1.0 if size is None else (np.asarray(size) / self.sizes).min(axis=1)
        return float(np.quantile(self.thickness * scale, SMALL_SHARE)) / CELL_PX


def choose_input(
    dataset: Dataset, size: tuple[int, int] | None = None, framing: Framing | None = None
) -> InputChoice:
    """Choose what is not given: input ``size`` (width, height), ``framing``, or both.

    Raises:
        InputError: framing ``exact`` without a size, and the photographs have several sizes or one that the
            network cannot take.
    """
    rows = [i for i, sample in enumerate(dataset.samples) if sample.split == "train"]
    if not rows:
        dataset.split("train")  # raises, naming the splits that are there
    frames = np.asarray([dataset.sizes[i] for i in rows], np.float64)
    if framing is not None and framing.mode == "exact":
        chosen = size or _exact(frames)
        return InputChoice(chosen, framing, _explain(chosen, framing, frames, None, "as asked for"))
    defects = measure_defects(dataset, rows)
    tile = size or _tile_size(frames)
    if framing is not None and framing.mode == "tile":
        return InputChoice(tile, framing, _explain(tile, framing, frames, defects, "as asked for"))
    resized = size or _resized(frames, defects)
    reason = "as asked for" if size else ""
    if framing is None and defects is not None and defects.small(resized) < LOST_CELLS:
        tiled = Framing("tile", min(TILE_OVERLAP, min(tile) // 2))
        tiles = _tiles(frames, tile, tiled)
        if tiles is None:
            reason = "tiles would keep more, but a photograph is smaller than one"
        elif tiles * math.prod(tile) * LEAST_TILE_EPOCHS > TRAINING_INPUTS * BASE_PIXELS:
            reason = f"tiles would keep more, but {tiles} of them are too many to train on"
        else:
            lost = f"resized to {_text(resized)} they would keep {defects.small(resized) * CELL_PX:.1f}"
            return InputChoice(tile, tiled, _explain(tile, tiled, frames, defects, lost))
    framing = framing or Framing("resize")
    return InputChoice(resized, framing, _explain(resized, framing, frames, defects, reason))


def measure_defects(dataset: Dataset, rows: Sequence[int]) -> Defects | None:
    """Measure the masks of the samples ``rows``; None where no defect is marked."""
    thickness, sizes = [], []
    for i in rows:
        sample = dataset.samples[i]
        if sample.defective and sample.mask is not None:
            widest = thickest(read_mask(sample))
            if widest:
                thickness.append(widest)
                sizes.append(dataset.sizes[i])
    if not thickness:
        return None
    return Defects(np.asarray(thickness, np.float64), np.asarray(sizes, np.float64))


def thickest(mask: NDArray[np.bool_]) -> float:
    """Diameter in pixels of the largest disc inside a mask (bool H x W); 0 for an empty one.

    A long crack is as thin as it is, whichever way it runs, which a bounding box would not say.
    """
    from scipy.ndimage import distance_transform_edt

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0.0
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return 2 * float(distance_transform_edt(np.pad(part, 1)).max()) - 1


def _resized(frames: NDArray[np.float64], defects: Defects | None) -> tuple[int, int]:
    """The input for whole photographs: as large as the small defects need and the training time allows."""
    low, high = np.quantile(frames[:, 0] / frames[:, 1], (0.05, 0.95))
    one_shape = high <= low * ONE_SHAPE
    aspect = float(np.median(frames[:, 0] / frames[:, 1]) if one_shape else np.clip(1, low, high))
    native = float(np.median(frames.prod(axis=1)))
    affordable = BASE_PIXELS * TRAINING_INPUTS / (LEAST_EPOCHS * len(frames))
    most = float(np.clip(affordable, BASE_PIXELS, MOST_GROWTH * BASE_PIXELS))
    base = min(BASE_PIXELS, native)
    if defects is None:
        wanted = native * UNKNOWN_SCALE**2
    else:
        wanted = base * (WANTED_CELLS / defects.small(_rectangle(base, aspect))) ** 2
    pixels = np.clip(wanted, base, min(most, native * MOST_ENLARGED**2))
    return _rectangle(float(pixels), aspect)


def _rectangle(pixels: float, aspect: float) -> tuple[int, int]:
    """(width, height) of about ``pixels`` with ``aspect`` = width / height, in steps of ``MULTIPLE``."""
    height = math.sqrt(pixels / aspect)
    return _step(height * aspect), _step(height)


def _step(side: float) -> int:
    return int(np.clip(math.floor(side / MULTIPLE + 0.5) * MULTIPLE, LEAST_SIDE, MOST_SIDE))


def _tile_size(frames: NDArray[np.float64]) -> tuple[int, int]:
    """The base square, made smaller where the smallest photograph is smaller than that."""
    width, height = (
        max(min(int(side) // MULTIPLE * MULTIPLE, math.isqrt(BASE_PIXELS)), LEAST_SIDE)
        for side in frames.min(axis=0)
    )
    return width, height


def _tiles(frames: NDArray[np.float64], size: tuple[int, int], framing: Framing) -> int | None:
    """How many tiles the photographs make; None if one is smaller than a tile."""
    if (frames < size).any():
        return None
    spec = InputSpec(*size)
    return sum(len(place(int(height), int(width), spec, framing).boxes) for width, height in frames)


def _exact(frames: NDArray[np.float64]) -> tuple[int, int]:
    width, height = (int(side) for side in frames[0])
    if (
        (frames != frames[0]).any()
        or width % MULTIPLE
        or height % MULTIPLE
        or min(width, height) < LEAST_SIDE
    ):
        raise InputError(
            "framing `exact` does not fit the photographs",
            wanted=f"one size, each side a multiple of {MULTIPLE}",
            got=_range(frames),
            next_step="leave --framing to be chosen, or name resize or tile",
        )
    return width, height


def _explain(
    size: tuple[int, int], framing: Framing, frames: NDArray[np.float64], defects: Defects | None, reason: str
) -> str:
    if defects is None:
        kept = "no mask says how small the defects are"
    else:
        thickness_px = defects.small(None if framing.mode == "tile" else size) * CELL_PX
        kept = f"the smaller quarter of the defects is up to {thickness_px:.1f} input pixels thick"
    overlap = f" with {framing.overlap} pixels of overlap" if framing.mode == "tile" else ""
    line = f"input {_text(size)}, framing {framing.mode}{overlap}: photographs are {_range(frames)}; {kept}"
    return f"{line}; {reason}" if reason else line


def _range(frames: NDArray[np.float64]) -> str:
    low, high = frames.min(axis=0).astype(int), frames.max(axis=0).astype(int)
    sides = " x ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(low, high))
    ratios = frames[:, 0] / frames[:, 1]
    mixed = np.quantile(ratios, 0.95) > np.quantile(ratios, 0.05) * ONE_SHAPE
    return f"{sides} pixels" + (" of mixed shape" if mixed else "")


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
