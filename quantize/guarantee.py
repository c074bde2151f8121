"""Bounds on the share of defective parts that are missed: exact, for parts that nothing else has used.

The unit is the *part*: photographs of one group show one part, so they are not independent, and only parts are
counted. A defective part is missed when any of its defective photographs is called good; a good part is a false
alarm when any of its photographs is called defective. Good photographs of a defective part (its defect is on
another side) count nowhere: there is nothing to miss in them, and the part is rightly thrown out.

One threshold, fixed beforehand: the one-sided Clopper-Pearson bound (Clopper and Pearson, Biometrika 26, 1934).
A threshold chosen for its miss rate: fixed-sequence testing with binomial p-values (Angelopoulos et al., "Learn
then Test", arXiv 2110.01052, section 2.2). Both are exact where the parts are independent draws from what the line
makes. What counts as a part is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantize.errors import GuaranteeError

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Parts:
    """The one score that decides about each part.

    Attributes:
        defective: float64 [D], for each defective part the lowest logit of its defective photographs.
        good: float64 [G], for each good part the highest logit of its photographs.
        photographs: how many there were.
    """

    defective: NDArray[np.float64]
    good: NDArray[np.float64]
    photographs: int

    def misses(self, threshold: float) -> int:
        """Defective parts that are missed where the verdict is logit >= ``threshold``."""
        return int((self.defective < threshold).sum())

    def false_alarms(self, threshold: float) -> int:
        """Good parts that are called defective."""
        return int((self.good >= threshold).sum())


def gather_parts(defective: ArrayLike, scores: ArrayLike, groups: Sequence[str] | None = None) -> Parts:
    """Photographs (labels 0/1 [N], logits [N], groups [N]) as parts; without groups each is its own part."""
    label = np.asarray(defective, dtype=bool)
    score = np.asarray(scores, dtype=np.float64)
    if label.shape != score.shape or label.ndim != 1 or (groups is not None and len(groups) != len(label)):
        raise ValueError(f"labels {label.shape}, scores {score.shape} and groups must be of one length")
    names = np.arange(len(label)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(names.max()) + 1 if len(names) else 0
    lowest, highest = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(lowest, names[label], score[label])
    np.maximum.at(highest, names, score)
    bad = np.zeros(count, dtype=bool)
    bad[names[label]] = True
    return Parts(lowest[bad], highest[~bad], int(label.size))


def count_defective_parts(labelled_groups: Iterable[tuple[str, bool]]) -> int:
    """Parts with a defective photograph, from (group, defective) of each photograph."""
    return len({group for group, defective in labelled_groups if defective})


def upper_bound(events: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """One-sided exact (Clopper-Pearson) upper bound of a rate after ``events`` in ``trials``, 0..1."""
    if not 0 <= events <= trials or trials < 1:
        raise ValueError(f"{events} events in {trials} trials")
    if events == trials:
        return 1.0
    from scipy.stats import beta

    return float(beta.ppf(confidence, events + 1, trials - events))


def smallest_rate(parts: int, confidence: float = CONFIDENCE) -> float:
    """The lowest bound that ``parts`` defective parts can support: the one after no miss at all, 0..1."""
    return upper_bound(0, parts, confidence) if parts else 1.0


def parts_needed(max_miss_rate: float, confidence: float = CONFIDENCE) -> int:
    """The fewest defective parts that can support ``max_miss_rate``, if none of them is missed."""
    parts = max(1, math.ceil(math.log(1 - confidence) / math.log1p(-max_miss_rate)) - 1)
    while (1 - max_miss_rate) ** parts > 1 - confidence:
        parts += 1
    return parts


def riskiest_safe_threshold(
    scores: NDArray[np.float64], candidates: NDArray[np.float64], max_miss_rate: float, confidence: float
) -> float | None:
    """The largest threshold whose miss rate is at most ``max_miss_rate``, at this confidence.

    Fixed-sequence testing: ``candidates`` (float64 [C], chosen without ``scores``) are tested from the safest,
    lowest, upwards; each null hypothesis "its miss rate is above" is rejected when so few misses have a
    probability of at most 1 - confidence; the first that is not rejected ends the sequence. Because they are
    tested in an order fixed beforehand, each may use the whole error probability.

    ``scores`` is ``Parts.defective`` of the held-out parts. None where not even the lowest passes.
    """
    from scipy.stats import binom

    order = np.unique(candidates)
    misses = np.searchsorted(np.sort(scores), order, side="left")
    rejected = binom.cdf(misses, len(scores), max_miss_rate) <= 1 - confidence
    passed = len(order) if rejected.all() else int(np.argmin(rejected))
    return float(order[passed - 1]) if passed else None


@dataclass(frozen=True)
class Guarantee:
    """What is known about the miss rate from parts that nothing else has used.

    With probability ``confidence`` over the draw of the parts, the miss rate of full precision at the chosen
    threshold is at most ``miss_rate_upper``. ``false_alarm_rate_upper`` holds at the same confidence by itself,
    also after ``fixed-sequence``: the threshold is chosen by the defective parts alone, and the good ones are
    independent of them. Both at once hold with 1 - 2 (1 - confidence) at least.

    Attributes:
        alpha: the miss rate that was asked for (rule ``risk``), else None.
        method: ``clopper-pearson`` (threshold fixed without these parts) or ``fixed-sequence``.
        parts, misses: defective parts, and those missed.
        false_alarm_rate_upper: None where no part is good.
        photographs: that the parts were counted from.
        samples_digest: SHA-256 of the split, see ``edge.samples.dataset_digest``.
    """

    alpha: float | None
    miss_rate_upper: float
    confidence: float
    method: str
    split: str
    parts: int
    misses: int
    good_parts: int
    false_alarms: int
    false_alarm_rate_upper: float | None
    photographs: int
    samples_digest: str
    network: str = "full precision"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def guarantee(
    parts: Parts,
    threshold: float,
    *,
    confidence: float,
    split: str,
    samples_digest: str,
    alpha: float | None = None,
) -> Guarantee:
    """The bounds at ``threshold``, which was fixed without ``parts`` or, with ``alpha``, by fixed sequence.

    After a fixed sequence the bound is ``alpha`` itself. Clopper-Pearson at the chosen threshold would often be
    lower, but the parts chose that threshold, so it is not a bound at this confidence.
    """
    trials, misses, alarms = len(parts.defective), parts.misses(threshold), parts.false_alarms(threshold)
    return Guarantee(
        alpha=alpha,
        miss_rate_upper=upper_bound(misses, trials, confidence) if alpha is None else alpha,
        confidence=confidence,
        method="clopper-pearson" if alpha is None else "fixed-sequence",
        split=split,
        parts=trials,
        misses=misses,
        good_parts=len(parts.good),
        false_alarms=alarms,
        false_alarm_rate_upper=upper_bound(alarms, len(parts.good), confidence) if len(parts.good) else None,
        photographs=parts.photographs,
        samples_digest=samples_digest,
    )


def check_enough_parts(parts: int, max_miss_rate: float, confidence: float, where: str) -> None:
    """Refuse a miss rate that ``parts`` defective parts could not support even without a miss.

    Raises:
        GuaranteeError: with the lowest miss rate that they can, and how many the one asked for needs.
    """
    needed = parts_needed(max_miss_rate, confidence)
    if parts >= needed:
        return
    can = f"--max-miss-rate {ceil_rate(smallest_rate(parts, confidence))} or more, or " if parts else ""
    raise GuaranteeError(
        f"{where} cannot support a miss rate of at most {max_miss_rate:g} at confidence {confidence:g}",
        wanted=f"at least {needed} defective parts, none of them missed",
        got=f"{parts} defective parts"
        + (f", which support {ceil_rate(smallest_rate(parts, confidence))} at best" if parts else ""),
        next_step=f"{can}{needed - parts} more defective parts in split `decide`; or another --rule",
    )


def ceil_rate(rate: float) -> float:
    """``rate`` rounded up to four digits, so that asking for what was printed is granted."""
    return min(1.0, math.ceil(rate * 10_000) / 10_000)
