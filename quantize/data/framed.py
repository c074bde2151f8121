"""The data set as the network sees it: tiles of the input's size, framed by the runtime's own code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edge.errors import InputError
from edge.images import read_image
from edge.preprocess import Framing, InputSpec, frame_to_tiles, mask_to_tiles
from edge.progress import progress
from edge.samples import Sample
from quantize.data.dataset import read_mask

# A defect that only touches a tile with fewer pixels than this cannot be asked of it.
TILE_DEFECT_PIXELS = 8


@dataclass(frozen=True)
class FramedSet:
    """All tiles of some samples, in memory as bytes: one byte per pixel and channel, one for the mask.

    Attributes:
        tiles: raw pixels, uint8 T x C x H x W.
        coverage: defective share of each pixel, uint8 T x H x W, 255 is all of it.
        defective: label of each tile, bool T.
        mask_known: whether ``coverage`` is the truth, bool T.
        sample: index of each tile's sample in the sequence that was framed, int64 T.
    """

    tiles: Tensor
    coverage: Tensor
    defective: Tensor
    mask_known: Tensor
    sample: Tensor

    def __len__(self) -> int:
        return len(self.tiles)


def frame_samples(samples: Sequence[Sample], spec: InputSpec, framing: Framing) -> FramedSet:
    """Read and frame ``samples``.

    A tile of a defective sample is defective if the mask says that the defect is in it. Without a mask that
    is known only where one tile is the whole frame; such tiles of larger frames are left out.
    """
    tiles: list[np.ndarray] = []
    coverage: list[np.ndarray] = []
    labels: list[tuple[bool, bool, int]] = []
    for index, sample in enumerate(progress(samples, "framing")):
        try:
            framed, placement = frame_to_tiles(read_image(sample.image), spec, framing)
        except InputError as error:
            raise InputError(
                f"{sample.where}: {error.what}",
                wanted=error.wanted,
                got=error.got,
                next_step=error.next_step,
            ) from error
        mask = None if sample.mask is None else read_mask(sample)
        if mask is not None and mask.any() and sample.defective:
            share = np.rint(mask_to_tiles(mask, placement, spec) * 255).astype(np.uint8)
            known = True
        else:
            share = np.zeros((len(framed), spec.height, spec.width), np.uint8)
            known = not sample.defective
        for tile, covered in zip(framed, share):
            if len(framed) == 1:
                defective = sample.defective
            elif not known:
                continue
            else:
                touched = int(np.count_nonzero(covered >= 128))
                if 0 < touched < TILE_DEFECT_PIXELS:
                    continue
                defective = touched > 0
            tiles.append(tile.transpose(2, 0, 1))
            coverage.append(covered)
            labels.append((defective, known, index))
    if not tiles:
        raise InputError(f"no tile can be learned from in {len(samples)} samples")
    return FramedSet(
        tiles=torch.from_numpy(np.stack(tiles)),
        coverage=torch.from_numpy(np.stack(coverage)),
        defective=torch.tensor([label[0] for label in labels]),
        mask_known=torch.tensor([label[1] for label in labels]),
        sample=torch.tensor([label[2] for label in labels]),
    )
