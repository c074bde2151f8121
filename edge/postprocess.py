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
    return (values.astype(np.float32) - np.float32(zero_point or 0)) * np.float32(scale)


@lru_cache(maxsize=64)
def _bilinear(source: int, target: int) -> FloatArray:
    """Half-pixel bilinear weights [target, source]."""
    position = (np.arange(target) + 0.5) * source / target - 0.5
    low = np.floor(position).astype(int)
    fraction = position - low
    matrix = np.zeros((target, source), np.float32)
    rows = np.arange(target)
    np.add.at(matrix, (rows, np.clip(low, 0, source - 1)), 1 - fraction)
    np.add.at(matrix, (rows, np.clip(low + 1, 0, source - 1)), fraction)
    matrix.setflags(write=False)
    return matrix


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
        first, last = max(int(cells[0]) - 1, 0), min(int(cells[-1]) + 2, size)
        # A cell c reaches output pixels whose position lies within (c - 1, c + 1).
        start = max(int(np.floor((first + 0.5) * target / size)) - 1, 0)
        stop = min(int(np.ceil((last + 0.5) * target / size)) + 1, target)
        box.append((start, stop, first, last))
    (top, bottom, _, _), (left, right, _, _) = box
    vertical = _bilinear(logits.shape[0], height)[top:bottom]
    horizontal = _bilinear(logits.shape[1], width)[left:right]
    mask[top:bottom, left:right] = vertical @ logits @ horizontal.T >= threshold
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

    previous: list[int] = []
    for row in np.flatnonzero(mask.any(axis=1)):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], mask[row].view(np.int8), [0]))))
        current = []
        for start, stop in zip(edges[0::2].tolist(), edges[1::2].tolist()):
            index = len(runs)
            runs.append((int(row), start, stop))
            parent.append(index)
            current.append(index)
            for other in previous:
                above_row, above_start, above_stop = runs[other]
                if above_row == row - 1 and above_start < stop and start < above_stop:
                    parent[root(other)] = root(index)
        previous = current
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
