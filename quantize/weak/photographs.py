"""The photographs of a split as the classifier sees them: whole, and read again where a crop is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edge.images import read_image
from edge.preprocess import InputSpec, resize, to_channels
from edge.progress import progress
from edge.samples import Sample

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Photographs:
    """Labels, and the photographs resized to the input, bytes N x C x H x W in ``whole``."""

    def __init__(self, samples: Sequence[Sample], spec: InputSpec, what: str = "") -> None:
        self.samples, self.spec = samples, spec
        self.defective = torch.tensor([sample.defective for sample in samples])
        indices = range(len(samples))
        self.whole = torch.stack(
            [self.crop(i, WHOLE) for i in (progress(indices, what) if what else indices)]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def crop(self, index: int, box: Box) -> Tensor:
        """Pixels of ``box`` (top, left, height, width as shares of the photograph), uint8 C x H x W."""
        spec = self.spec
        pixels = to_channels(read_image(self.samples[index].image), spec.channels)
        height, width = pixels.shape[:2]
        top, left = int(box[0] * height), int(box[1] * width)
        bottom = max(top + 1, round((box[0] + box[2]) * height))
        right = max(left + 1, round((box[1] + box[3]) * width))
        cut = resize(pixels[top:bottom, left:right], spec.height, spec.width)
        return torch.tensor(cut.reshape(spec.height, spec.width, spec.channels)).permute(2, 0, 1)
