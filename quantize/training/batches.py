"""Balanced batches from a framed set: as many defective tiles as good ones, real and synthetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantize.data.framed import FramedSet
from quantize.training.augmentation import Augmentation, AugmentationConfig
from quantize.training.deck import Deck
from quantize.training.defects import DefectConfig, SyntheticDefects
from quantize.training.losses import Truth


@dataclass(frozen=True)
class Batch:
    """Input float32 N x C x H x W, what to answer, and which tiles of the set they are (int64 N)."""

    images: Tensor
    truth: Truth
    tiles: Tensor


class BalancedBatches:
    """One epoch after another of augmented batches; epoch ``e`` is the same after a resume.

    An epoch shows as many tiles as the set has, ``epoch_tiles`` at least, half of them defective. Defective tiles
    are dealt out evenly; of the good ones those that the network finds hard come first (``Deck``). With several
    processes each draws its own share. Distances to a defect's edge are computed where ``centers`` asks for them.
    """

    def __init__(
        self,
        data: FramedSet,
        *,
        batch_size: int,
        epoch_tiles: int = 0,
        augmentation: AugmentationConfig,
        defects: DefectConfig,
        centers: bool = False,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data, self.batch_size, self.augmentation = data, batch_size, augmentation
        self.seed, self.device, self.rank = seed, device, rank
        self.steps = max(1, max(len(data), epoch_tiles) // (batch_size * world))
        self.positives = torch.nonzero(data.defective).flatten()
        self.good = Deck(torch.nonzero(~data.defective).flatten())
        donors = torch.nonzero(data.defective & data.mask_known).flatten()
        self.synthetic = SyntheticDefects(defects, data.tiles, data.coverage, donors)
        self.centers = {int(i): center_weights(data.coverage[i]) for i in donors} if centers else None

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of epoch ``index`` (from 0)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index * 1009 + self.rank)
        augment = Augmentation(self.augmentation, generator)
        half = self.batch_size // 2
        positives = _dealt(self.positives, self.steps * half, generator)
        negatives = self.good.deal(self.steps * (self.batch_size - half), generator)
        for step in range(self.steps):
            chosen = torch.cat(
                [
                    positives[step * half : (step + 1) * half],
                    negatives[step * (self.batch_size - half) : (step + 1) * (self.batch_size - half)],
                ]
            )
            tiles, planes, defective = self._raw(chosen, generator)
            known = self.data.mask_known[chosen]
            pasted = defective & ~self.data.defective[chosen]
            images, moved = augment(tiles.to(self.device), planes.to(self.device))
            # A defect that was moved out of sight cannot be asked for.
            seen = (moved[:, 0] >= 0.5).flatten(1).any(dim=1).cpu()
            defective = defective & (seen | ~known)
            yield Batch(
                images=images.contiguous(memory_format=torch.channels_last),
                truth=Truth(
                    defective=defective.float().to(self.device),
                    target=moved[:, :1],
                    center=moved[:, 1:] if self.centers is not None else None,
                    mask_known=(known & (~pasted | self.synthetic.config.masks)).float().to(self.device),
                ),
                tiles=chosen,
            )

    def learn(self, tiles: Tensor, defect: Tensor) -> None:
        """Take note of how the network answered (logits N) for tiles that `epoch` gave."""
        good = ~self.data.defective[tiles]
        self.good.learn(tiles[good], torch.sigmoid(defect.detach().float().cpu())[good])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self.good.state()

    def resume(self, state: dict[str, Any]) -> None:
        """Take up an earlier ``state``."""
        self.good.resume(state)

    def _raw(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Tiles uint8, planes (coverage, centers if wanted) uint8 and labels, some of good tiles synthetic."""
        tiles, coverage = self.data.tiles[chosen], self.data.coverage[chosen]
        defective = self.data.defective[chosen].clone()
        draws = torch.rand(len(chosen), generator=generator)
        for place in torch.nonzero(~defective & (draws < self.synthetic.config.share)).flatten().tolist():
            if (made := self.synthetic(tiles[place], generator)) is not None:
                tiles[place], coverage[place] = made
                defective[place] = True
        if self.centers is None:
            return tiles, coverage[:, None], defective
        own, none = self.centers, torch.zeros_like(coverage[0])
        pasted = defective & ~self.data.defective[chosen]
        centers = [
            center_weights(coverage[place]) if pasted[place] else own.get(index, none)
            for place, index in enumerate(chosen.tolist())
        ]
        return tiles, torch.stack([coverage, torch.stack(centers)], dim=1), defective


def center_weights(coverage: Tensor) -> Tensor:
    """Distance to the edge of the defect over the largest one, squared: uint8 H x W, 255 in the middle.

    Each connected piece has its own largest distance, so that a small one counts like a large one.
    """
    from scipy import ndimage

    inside = coverage.numpy() >= 128
    if not inside.any():
        return torch.zeros_like(coverage)
    # A border of background: a defect that runs out of the frame has its edge there.
    distance = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    pieces, count = ndimage.label(inside)
    largest = np.ones(count + 1)
    largest[1:] = ndimage.maximum(distance, pieces, np.arange(1, count + 1))
    return torch.from_numpy(np.rint((distance / largest[pieces]) ** 2 * 255).astype(np.uint8))


def _dealt(cards: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rounds = -(-count // len(cards))
    order = [cards[torch.randperm(len(cards), generator=generator)] for _ in range(rounds)]
    return torch.cat(order)[:count]
