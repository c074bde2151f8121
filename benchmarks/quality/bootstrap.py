"""Can two systems be told apart? A bootstrap paired over groups, and over seeds.

Photographs of one part are alike, so parts are drawn, not photographs, and both systems see the same draw. The
trainings are drawn too: a difference that comes from a lucky seed is none. With three seeds that widens an
interval less than it should (a sample of three knows its own spread badly), so what is called
distinguishable by a hair deserves more seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of one system minus another, and the interval that the bootstrap gives."""

    value: float
    low: float
    high: float
    seeds: tuple[int, ...]

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out 0; False where there is no interval."""
        return self.low > 0 or self.high < 0


def group_weights(groups: NDArray[np.str_], draws: int, random: np.random.Generator) -> Floats:
    """How often each photograph counts in each draw of as many groups as there are; float64 [draws, n]."""
    names, member = np.unique(groups, return_inverse=True)
    counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return counts[:, member].astype(np.float64)


def difference(
    ours: Mapping[int, tuple[float, Floats]],
    theirs: Mapping[int, tuple[float, Floats]],
    random: np.random.Generator,
) -> Difference | None:
    """A metric of one system minus another's, over the seeds that both have; None without any.

    Each mapping is seed -> (value on all of the data, values of the draws, float64 [draws]).
    """
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    if not seeds:
        return None
    value = float(np.mean([ours[seed][0] - theirs[seed][0] for seed in seeds]))
    drawn = np.stack([ours[seed][1] - theirs[seed][1] for seed in seeds])
    trainings = random.integers(len(seeds), size=drawn.shape)
    means = np.take_along_axis(drawn, trainings, axis=0).mean(axis=0)
    means = means[np.isfinite(means)]  # a draw without any positive says nothing
    if not len(means):
        return Difference(value, float("nan"), float("nan"), seeds)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, float(low), float(high), seeds)
