"""Contact sheets: photographs with the outlines of what a stage found in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.images import read_image, write_png
from edge.preprocess import resize, to_channels
from edge.samples import Sample

CELL_PX = 192
COLUMNS, ROWS = 8, 5
FILL = (24, 24, 24)
MASK_COLOUR, MAP_COLOUR = (255, 40, 40), (255, 190, 0)


def contact_sheet(
    path: Path,
    samples: Sequence[Sample],
    masks: Sequence[NDArray[np.bool_]],
    maps: Sequence[NDArray[np.bool_]] | None = None,
) -> None:
    """Write a PNG of up to 40 photographs, evenly chosen, with outlines of ``masks`` (red) and ``maps`` (amber).

    Masks are bool H x W of any size that has the photograph's proportions.
    """
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), COLUMNS * ROWS)).astype(int))
    rows = -(-len(chosen) // COLUMNS)
    sheet = np.full((rows * CELL_PX, COLUMNS * CELL_PX, 3), FILL, np.uint8)
    for place, index in enumerate(chosen.tolist()):
        cell = _cell(samples[index])
        height, width = cell.shape[:2]
        for found, colour in ((maps, MAP_COLOUR), (masks, MASK_COLOUR)):
            if found is not None:
                grey = cv2.resize(
                    found[index].astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_LINEAR
                )
                outlines, _ = cv2.findContours(
                    (grey >= 128).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
                )
                cv2.drawContours(cell, outlines, -1, colour, 1)
        top, left = place // COLUMNS * CELL_PX, place % COLUMNS * CELL_PX
        sheet[top : top + height, left : left + width] = cell
    write_png(path, sheet)


def _cell(sample: Sample) -> NDArray[np.uint8]:
    """The photograph in RGB, as large as it fits into a cell with a margin of 2 pixels."""
    frame = read_image(sample.image)
    scale = (CELL_PX - 2) / max(frame.shape[:2])
    size = [max(1, round(n * scale)) for n in frame.shape[:2]]
    return np.ascontiguousarray(resize(to_channels(frame, 3), size[0], size[1]))
