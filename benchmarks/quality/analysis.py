"""What the records of all runs say: values for each seed, and for each draw of the bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.bootstrap import DRAWS, Difference, difference, group_weights
from benchmarks.quality.runs import Record
from benchmarks.quality.sample_table import SampleTable
from benchmarks.quality.systems import BASELINE
from benchmarks.quality.weighted_metrics import false_alarms, measure

Floats = NDArray[np.float64]
Records = Mapping[str, Mapping[int, Record]]

# The bootstrap's own seed: the same records give the same intervals.
RANDOM = 20261121


@dataclass(frozen=True, eq=False)
class Analysis:
    """Metrics of every run on one split.

    `values[system][seed][metric]` is float64 [1 + draws]: first the value on all of the split, then those of
    the draws, the same draws for every run. Recall at equal false alarms is read at the number of false alarms
    that the baseline of the same seed gives at its own threshold.
    """

    split: str
    values: dict[str, dict[int, dict[str, Floats]]] = field(repr=False)

    def seeds(self, system: str) -> tuple[int, ...]:
        return tuple(sorted(self.values.get(system, {})))

    def of_seeds(self, system: str, metric: str) -> dict[int, float]:
        """Seed -> value, without what is undefined (recall at equal false alarms without that baseline)."""
        runs = self.values.get(system, {})
        found = {seed: float(runs[seed][metric][0]) for seed in sorted(runs)}
        return {seed: value for seed, value in found.items() if np.isfinite(value)}

    def difference(self, system: str, reference: str, metric: str) -> Difference | None:
        """Mean difference and its interval over the seeds that both have; None without any."""
        ours, theirs = (
            {
                seed: (float(run[metric][0]), run[metric][1:])
                for seed, run in self.values.get(name, {}).items()
                if np.isfinite(run[metric][0])
            }
            for name in (system, reference)
        )
        return difference(ours, theirs, np.random.default_rng(RANDOM))


def analyse(records: Records, split: str, draws: int = DRAWS, without: Sequence[str] = ()) -> Analysis:
    """Measure every record's table of `split`, `without` some groups.

    Raises:
        ValueError: two records answer about different photographs, or by different labels.
    """
    tables = {
        system: {seed: record.tables[split] for seed, record in runs.items()}
        for system, runs in records.items()
    }
    everything = [table for runs in tables.values() for table in runs.values()]
    if not everything:
        return Analysis(split, {})
    _check_same(everything, split)
    drawn = group_weights(everything[0].group, draws, np.random.default_rng(RANDOM))
    weights = np.concatenate([np.ones((1, drawn.shape[1])), drawn])
    weights = weights * ~np.isin(everything[0].group, list(without))
    alarms = {seed: false_alarms(table, weights) for seed, table in tables.get(BASELINE, {}).items()}
    return Analysis(
        split,
        {
            system: {seed: measure(table, weights, alarms.get(seed)) for seed, table in runs.items()}
            for system, runs in tables.items()
        },
    )


def _check_same(tables: list[SampleTable], split: str) -> None:
    first = tables[0]
    for other in tables[1:]:
        for column in ("sample", "group", "defect_type", "defective", "truth"):
            if not np.array_equal(getattr(first, column), getattr(other, column)):
                raise ValueError(f"two runs were predicted on different data: `{column}` of {split} differs")
