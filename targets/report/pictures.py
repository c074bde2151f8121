"""Photographs and mask outlines for the report: small PNGs as data URIs, outlines as SVG paths."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.images import png_bytes
from edge.preprocess import UInt8Array, resize

LONG_SIDE_PX = 220
SMALL_PX = 9  # an outline up to this size gets a ring around it,
FEW = 6  # unless there are so many outlines that rings would hide the picture


def display_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which a frame is shown: the long side at most `LONG_SIDE_PX`, never enlarged."""
    shrink = max(height, width, LONG_SIDE_PX) / LONG_SIDE_PX
    return max(round(height / shrink), 1), max(round(width / shrink), 1)


def photograph(frame: UInt8Array) -> str:
    """The frame (uint8 HxW or HxWx3), made small, as a `data:` URI."""
    small = resize(frame, *display_size(*frame.shape[:2]))
    return "data:image/png;base64," + base64.b64encode(png_bytes(small)).decode("ascii")


@dataclass(frozen=True)
class Outline:
    """What is drawn of a mask, in display pixels.

    Attributes:
        path: `d` of an SVG path around the mask; empty for an empty mask.
        rings: centres (x, y) of outlines so small that a ring must point at them.
    """

    path: str = ""
    rings: tuple[tuple[float, float], ...] = ()


def outline(mask: NDArray[np.bool_]) -> Outline:
    """Outline a mask (bool HxW).

    A display pixel is inside when any pixel below it is: made small, a thin scratch must not vanish.
    """
    from contourpy import contour_generator

    height, width = display_size(*mask.shape)
    inside = np.zeros((height, width), bool)
    rows, columns = np.nonzero(mask)
    inside[rows * height // mask.shape[0], columns * width // mask.shape[1]] = True
    padded = np.pad(inside, 1).astype(np.float64)
    # contourpy puts a pixel's value at its centre, which lies half a pixel from the picture's edge.
    lines = [np.asarray(line) - 0.5 for line in contour_generator(z=padded).lines(0.5)]
    small = [line for line in lines if np.ptp(line, axis=0).max() <= SMALL_PX]
    rings = [line.min(axis=0) + np.ptp(line, axis=0) / 2 for line in small]
    return Outline(
        "".join(map(_path, lines)),
        tuple((float(x), float(y)) for x, y in rings) if len(lines) <= FEW else (),
    )


def _path(points: NDArray[np.float64]) -> str:
    """A closed path through `points` [n, 2] (x, y), without the points that lie on a straight line."""
    ring = points[:-1] if len(points) > 1 and np.array_equal(points[0], points[-1]) else points
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    corner = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = ring[corner] if corner.any() else ring
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in kept) + "Z"
