"""One run's answers on a split as a table, a row for each photograph: all that the analysis needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.predictions import Predictions
from edge.samples import Sample
from quantize.evaluation import overlaps

COUNTS = ("intersection", "predicted", "truth", "pixels")


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Columns of equal length n.

    Attributes:
        sample, group, defect_type: text [n]; a group is a part, photographed one or several times.
        defective, verdict: bool [n], the label and what the network called it at its own threshold.
        score: float64 [n], defect logit.
        known: bool [n], False where a defective photograph has no mask file: its counts are 0.
        intersection, predicted, truth, pixels: float64 [n], pixel counts in frame coordinates.
    """

    sample: NDArray[np.str_]
    group: NDArray[np.str_]
    defect_type: NDArray[np.str_]
    defective: NDArray[np.bool_]
    score: NDArray[np.float64]
    verdict: NDArray[np.bool_]
    known: NDArray[np.bool_]
    intersection: NDArray[np.float64]
    predicted: NDArray[np.float64]
    truth: NDArray[np.float64]
    pixels: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def masked(self) -> NDArray[np.bool_]:
        """The defective photographs whose ground truth is known and not empty: what masks are judged on."""
        return np.asarray(self.defective & self.known & (self.truth > 0))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union, blind to the verdict; 0 where there is nothing to compare."""
        return _ratio(self.intersection, self.predicted + self.truth - self.intersection)

    @property
    def covered(self) -> NDArray[np.float64]:
        """Share of the ground truth that was found, blind to the verdict; 0 where there is none."""
        return _ratio(self.intersection, self.truth)

    def as_dict(self) -> dict[str, list[Any]]:
        """Plain lists, for JSON; the ratios are written too, for other readers."""
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: column.tolist() for name, column in columns.items()} | {
            "iou": self.iou.tolist(),
            "covered": self.covered.tolist(),
        }


def read_table(columns: dict[str, list[Any]]) -> SampleTable:
    """The table that `SampleTable.as_dict` wrote."""
    kinds = {"defective": bool, "verdict": bool, "known": bool, "score": np.float64}
    kinds |= dict.fromkeys(COUNTS, np.float64)
    names = SampleTable.__dataclass_fields__
    return SampleTable(**{name: np.array(columns[name], kinds.get(name, np.str_)) for name in names})


def tabulate(predictions: Predictions, samples: Sequence[Sample]) -> SampleTable:
    """Predictions against the ground truth of `samples`, which are in the same order.

    Raises:
        InputError: the predictions are of other samples, or a mask does not fit its photograph.
    """
    counts = overlaps(predictions, samples)
    return read_table(
        {
            "sample": [sample.id for sample in samples],
            "group": [sample.group for sample in samples],
            "defect_type": [sample.defect_type for sample in samples],
            "defective": [sample.defective for sample in samples],
            "score": predictions.defect_logits.tolist(),
            "verdict": predictions.verdicts.tolist(),
            "known": [one is not None for one in counts],
        }
        | {name: [getattr(one, name) if one else 0 for one in counts] for name in COUNTS}
    )


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
