"""From logits to verdict, mask and regions. Dequantizes only what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.preprocess import BoolArray, FloatArray, Placement


@dataclass(frozen=True)
class Region:
    """One connected defect (4-neighbourhood) in frame pixels."""

    top: int
    left: int
    height: int
    width: int
    area_px: int


def dequantize(values: npt.NDArray[Any], scale: float | None, zero_point: int | None) -> FloatArray:
    """Return float32 logits; integer tensors are (q - zero_point) * scale."""
    if scale is None:
        return values.astype(np.float32, copy=False)
    logits: FloatArray = values.astype(np.float32)
    logits -= np.float32(zero_point or 0)
    logits *= np.float32(scale)
    return logits


@lru_cache(maxsize=64)
def _neighbours(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], FloatArray]:
    """Half-pixel bilinear: both neighbours of each output, and the upper one's weight."""
    low, upper = np.divmod((2 * np.arange(target) + 1) * source - target, 2 * target)
    weight = (upper / (2 * target)).astype(np.float32)
    return np.clip(low, 0, source - 1), np.clip(low + 1, 0, source - 1), weight


def _interpolate(values: FloatArray, target: int, start: int, stop: int) -> FloatArray:
    """Outputs `start` to `stop` of `values` [source, ...] stretched (or sampled) to `target` rows.

    Element by element, so the bytes are the same on every machine and for every part that is computed.
    """
    low, high, weight = (part[start:stop] for part in _neighbours(len(values), target))
    weight = weight[:, None]
    rows: FloatArray = values[low] * (1 - weight)
    rows += values[high] * weight
    return rows


def mask_at(logits: FloatArray, threshold: float, height: int, width: int) -> BoolArray:
    """Upsample mask logits [h, w] bilinearly to [height, width] and compare with `threshold`.

    A bilinear value never exceeds its largest neighbour, so only the surroundings of cells at or above the
    threshold are computed; the rest is False by construction.
    """
    mask = np.zeros((height, width), bool)
    above = logits >= threshold
    if not above.any():
        return mask
    box = []
    for axis, target in ((1, height), (0, width)):
        cells = np.flatnonzero(above.any(axis=axis))
        size = logits.shape[1 - axis]
        # A cell c reaches output pixels whose position lies within (c - 1, c + 1); the outermost cells reach
        # all the way to the border, where positions are clamped.
        start = max(int(np.floor((int(cells[0]) - 0.5) * target / size)) - 1, 0)
        stop = min(int(np.ceil((int(cells[-1]) + 1.5) * target / size)) + 1, target)
        box.append((start, target if cells[-1] == size - 1 else stop))
    (top, bottom), (left, right) = box
    rows = _interpolate(logits, height, top, bottom)
    columns = _interpolate(np.ascontiguousarray(rows.T), width, left, right)
    mask[top:bottom, left:right] = threshold <= columns.T
    return mask


def stitch(tiles: list[FloatArray], placement: Placement, threshold: float) -> BoolArray:
    """Join the mask logits of all tiles into one mask in frame coordinates (union where tiles overlap)."""
    if len(tiles) == 1 and placement.boxes[0][:2] == (0, 0):
        return mask_at(tiles[0], threshold, placement.frame_height, placement.frame_width)
    mask = np.zeros((placement.frame_height, placement.frame_width), bool)
    for logits, (top, left, height, width) in zip(tiles, placement.boxes):
        mask[top : top + height, left : left + width] |= mask_at(logits, threshold, height, width)
    return mask


def regions(mask: BoolArray) -> list[Region]:
    """Connected regions of a mask, largest first: runs of each row, joined with a union-find."""
    parent: list[int] = []
    runs: list[tuple[int, int, int]] = []  # row, first column, last column + 1

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    above, above_end, above_row = 0, 0, -2  # the runs of the previous row are runs[above:above_end]
    for row in np.flatnonzero(mask.any(axis=1)).tolist():
        edges = np.flatnonzero(np.diff(np.concatenate(([0], mask[row].view(np.int8), [0]))))
        if row != above_row + 1:
            above = above_end
        first = len(runs)
        for start, stop in zip(edges[0::2].tolist(), edges[1::2].tolist()):
            index = len(runs)
            runs.append((row, start, stop))
            parent.append(index)
            while above < above_end and runs[above][2] <= start:
                above += 1
            # The last run that touches may touch the next one of this row too, so it is not passed yet.
            other = above
            while other < above_end and runs[other][1] < stop:
                parent[root(other)] = root(index)
                other += 1
            above = max(above, other - 1)
        above, above_end, above_row = first, len(runs), row
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(root(index), []).append(run)
    found = []
    for members in groups.values():
        top, left = members[0][0], min(m[1] for m in members)
        found.append(
            Region(
                top=min(top, *(m[0] for m in members)),
                left=left,
                height=max(m[0] for m in members) - min(m[0] for m in members) + 1,
                width=max(m[2] for m in members) - left,
                area_px=sum(m[2] - m[1] for m in members),
            )
        )
    return sorted(found, key=lambda r: (-r.area_px, r.top, r.left))
