"""Photographs that show the same thing: of one part under two names, mirrored copies, the same file saved again.

Ours, in two steps. A small picture of each photograph, without its slow changes of light and without what all of
them share, is compared with every other by correlation. Pairs that come out alike are looked at again at a higher
resolution, each spot brought to the same contrast, allowing a small shift (phase-free cross-correlation by FFT).
The second number is the one that decides; ``docs/data.md`` has what it reads on real photographs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge.preprocess import UInt8Array, resize, to_channels
from edge.progress import progress

SMALL_PX, LARGE_PX = 32, 256
SMALL_SMOOTH_PX, LARGE_SMOOTH_PX, CONTRAST_PX = 5, 7, 15
CANDIDATE = 0.4  # correlation of the small pictures from which a pair is looked at again
MOST_NEIGHBOURS = 6  # of one photograph that are looked at again
SAME_SHAPE = 1.15  # aspect ratios further apart than this factor are not compared
SHIFT_PX = 16
ALIKE = 0.5
COPY = 0.7  # turned pairs are copies made by a program; streaks of machining match when turned, too
UNRELATED_PAIRS = 200
TURNS = {"": (1, 1), "mirrored": (1, -1), "upside down": (-1, 1), "turned by 180 degrees": (-1, -1)}
FLAT = 4.0  # grey levels squared: noise of an even surface is not brought to full contrast


@dataclass(frozen=True)
class Pair:
    """Two photographs by index, how alike they are (1 is the same), and how the second is turned."""

    first: int
    second: int
    likeness: float
    turn: str = ""


def reduce(image: UInt8Array) -> tuple[NDArray[np.float32], UInt8Array]:
    """What is kept of a photograph: the small picture, float32, and the large one, uint8, both grey and square."""
    grey = to_channels(image, 1)[:, :, 0]
    return resize(grey, SMALL_PX, SMALL_PX).astype(np.float32), resize(grey, LARGE_PX, LARGE_PX)


def find_pairs(
    small: Sequence[NDArray[np.float32]],
    large: Sequence[UInt8Array],
    shapes: Sequence[tuple[int, int]],
    groups: Sequence[str],
) -> list[Pair]:
    """Pairs of photographs of different ``groups`` that are alike, the most alike first.

    Args:
        small, large: of ``reduce``. shapes: (height, width) of each photograph.
    """
    if len(small) < 2:
        return []
    flat = _flatten(np.stack(small))

    @lru_cache(maxsize=2048)
    def spectrum(index: int, turn: str) -> NDArray[np.complex64]:
        down, right = TURNS[turn]
        return _spectrum(large[index][::down, ::right])

    def likeness(first: int, second: int, turn: str) -> float:
        return _peak(spectrum(first, ""), spectrum(second, turn))

    level = _level(likeness, groups)
    pairs: dict[tuple[int, int], Pair] = {}
    candidates = _candidates(flat, np.asarray(shapes, np.float64), np.asarray(groups))
    for first, second, turn in progress(candidates, "comparing photographs"):
        found = Pair(first, second, likeness(first, second, turn), turn)
        known = pairs.get((first, second))
        if found.likeness >= max(level, COPY if turn else 0) and (
            known is None or known.likeness < found.likeness
        ):
            pairs[first, second] = found
    return sorted(pairs.values(), key=lambda pair: (-pair.likeness, pair.first, pair.second))


def _flatten(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of unit length without slow changes of light, and without what all photographs have in common."""
    from scipy.ndimage import uniform_filter

    sharp = pictures - uniform_filter(pictures, (0, SMALL_SMOOTH_PX, SMALL_SMOOTH_PX))
    rows = sharp.reshape(len(sharp), -1)
    if len(rows) > MOST_NEIGHBOURS:
        rows = rows - rows.mean(axis=0)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)).astype(np.float32)


def _candidates(
    flat: NDArray[np.float32], shapes: NDArray[np.float64], groups: NDArray[np.str_]
) -> list[tuple[int, int, str]]:
    """The closest neighbours of each photograph in other groups: (index, index, turn), lower index first."""
    aspect = np.log(shapes[:, 0] / shapes[:, 1])
    found: set[tuple[int, int, str]] = set()
    square = flat.reshape(-1, SMALL_PX, SMALL_PX)
    for turn, (down, right) in TURNS.items():
        turned = square[:, ::down, ::right].reshape(len(flat), -1)
        for start in range(0, len(flat), 512):
            rows = slice(start, start + 512)
            close = flat[rows] @ turned.T
            close[groups[rows, None] == groups] = -1
            close[np.abs(aspect[rows, None] - aspect) > math.log(SAME_SHAPE)] = -1
            most = min(MOST_NEIGHBOURS, len(flat) - 1)
            best = np.argpartition(-close, most - 1, axis=1)[:, :most]
            for row, column in zip(*np.nonzero(np.take_along_axis(close, best, 1) >= CANDIDATE)):
                pair = sorted((int(start + row), int(best[row, column])))
                found.add((pair[0], pair[1], turn))
    return sorted(found)


def _spectrum(image: UInt8Array) -> NDArray[np.complex64]:
    from scipy.ndimage import uniform_filter

    grey = image.astype(np.float32)
    detail = grey - uniform_filter(grey, LARGE_SMOOTH_PX)
    detail /= np.sqrt(uniform_filter(detail**2, CONTRAST_PX) + FLAT)
    window = np.hanning(LARGE_PX).astype(np.float32)
    detail *= window[:, None] * window
    detail -= detail.mean()
    detail /= max(float(np.linalg.norm(detail)), 1e-6)
    return np.fft.rfft2(detail).astype(np.complex64)


def _peak(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> float:
    """The largest correlation within the shifts that are allowed."""
    shifted = np.fft.irfft2(first * second.conj())
    near = np.roll(shifted, (SHIFT_PX, SHIFT_PX), (0, 1))[: 2 * SHIFT_PX + 1, : 2 * SHIFT_PX + 1]
    return min(float(near.max()), 1.0)


def _level(likeness, groups: Sequence[str]) -> float:  # type: ignore[no-untyped-def]
    """From where two photographs count as alike: higher where unrelated ones already are, as printed parts are."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(groups), (UNRELATED_PAIRS, 2))
    unrelated = [likeness(int(a), int(b), "") for a, b in drawn if groups[a] != groups[b]]
    if not unrelated:
        return ALIKE
    usual = float(np.quantile(unrelated, 0.99))
    return max(ALIKE, usual + 0.4 * (1 - usual))
