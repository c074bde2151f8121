"""Balanced batches from a framed set: about as many defective tiles as good ones in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.data.framed import FramedSet
from quantize.training.augmentation import Augmentation, AugmentationConfig


@dataclass(frozen=True)
class Batch:
    """Input float32 N x C x H x W, target float32 N x 1 x H x W in 0..1, labels and known masks 0/1 N."""

    images: Tensor
    target: Tensor
    defective: Tensor
    mask_known: Tensor


class BalancedBatches:
    """One epoch after another of augmented batches; epoch ``e`` is the same after a resume.

    An epoch shows as many tiles as the set has, half of them defective: each class is dealt out in a shuffled
    order and reshuffled when used up, so no tile is far ahead of another. With several processes each draws
    its own share.
    """

    def __init__(
        self,
        data: FramedSet,
        *,
        batch_size: int,
        config: AugmentationConfig,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.config = config
        self.seed = seed
        self.device = device
        self.rank = rank
        self.steps = max(1, len(data) // (batch_size * world))
        self.positives = torch.nonzero(data.defective).flatten()
        self.negatives = torch.nonzero(~data.defective).flatten()

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of epoch ``index`` (from 0)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index * 1009 + self.rank)
        augment = Augmentation(self.config, generator)
        half = self.batch_size // 2
        positives = self._dealt(self.positives, self.steps * half, generator)
        negatives = self._dealt(self.negatives, self.steps * (self.batch_size - half), generator)
        for step in range(self.steps):
            chosen = torch.cat(
                [
                    positives[step * half : (step + 1) * half],
                    negatives[step * (self.batch_size - half) : (step + 1) * (self.batch_size - half)],
                ]
            )
            images, target = augment(
                self.data.tiles[chosen].to(self.device), self.data.coverage[chosen].to(self.device)
            )
            yield Batch(
                images=images.contiguous(memory_format=torch.channels_last),
                target=target,
                defective=self.data.defective[chosen].float().to(self.device),
                mask_known=self.data.mask_known[chosen].float().to(self.device),
            )

    @staticmethod
    def _dealt(cards: Tensor, count: int, generator: torch.Generator) -> Tensor:
        rounds = -(-count // len(cards))
        order = [cards[torch.randperm(len(cards), generator=generator)] for _ in range(rounds)]
        return torch.cat(order)[:count]
