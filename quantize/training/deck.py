"""Which good tiles to show next: there are many of them, and most have nothing left to teach."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# An easy tile keeps this much of the weight of the hardest, so that none is forgotten.
FLOOR = 0.2
SMOOTHING = 0.5


class Deck:
    """Deals tiles without replacement, rarely used and hard ones first.

    After SegDecNet's frequency-of-use sampling (Bozic et al., 2021: a good image is drawn in inverse proportion to
    how often it was used); that a hard one counts more is ours. The weight of a tile is
    ``(FLOOR + difficulty) / (1 + uses)``, with uses counted from the least used tile.
    """

    def __init__(self, tiles: Tensor) -> None:
        self.tiles = tiles
        self.uses = torch.zeros(len(tiles))
        self.difficulty = torch.full((len(tiles),), 0.5)

    def deal(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` tiles; each at most once more often than any other."""
        hands = []
        while count > 0:
            weight = (FLOOR + self.difficulty) / (1 + self.uses - self.uses.min())
            size = min(count, len(self.tiles))
            places = torch.multinomial(weight, size, replacement=False, generator=generator)
            # multinomial gives the heavy ones first: an epoch should not begin with all of the hard ones.
            places = places[torch.randperm(size, generator=generator)]
            self.uses[places] += 1
            hands.append(self.tiles[places])
            count -= size
        return torch.cat(hands) if hands else self.tiles[:0]

    def learn(self, tiles: Tensor, probability: Tensor) -> None:
        """Take note of how defective (0..1) the network called these good tiles."""
        places = torch.searchsorted(self.tiles, tiles)
        self.difficulty[places] = torch.lerp(probability, self.difficulty[places], SMOOTHING)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"uses": self.uses, "difficulty": self.difficulty}

    def resume(self, state: dict[str, Any]) -> None:
        """Take up an earlier ``state``."""
        self.uses, self.difficulty = state["uses"].clone(), state["difficulty"].clone()
