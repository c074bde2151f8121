"""Thresholds, chosen once on full-precision scores, then copied unchanged everywhere.

``export`` never sets them again, so a verdict that differs on a device is a flip and not a recalibration.

Rules ``f1``, ``youden`` and ``fixed`` need ``val`` alone, and count photographs, as ``edgeqc evaluate`` does. Rule
``risk`` chooses on the parts of split ``decide``, and what is promised of the miss rate (any rule) is counted in
parts of that split: see ``quantize.guarantee``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.errors import InputError
from edge.folders import sha256
from edge.samples import DECIDE, Sample, dataset_digest
from quantize.errors import GuaranteeError
from quantize.guarantee import (
    CONFIDENCE,
    ceil_rate,
    check_enough_parts,
    count_defective_parts,
    gather_parts,
    guarantee,
    riskiest_safe_threshold,
    upper_bound,
)

RULES = ("f1", "youden", "fixed", "risk")

# Thresholds that are rated at a time, so that a large `val` fits into memory.
CHUNK = 256
# Qualities this near to each other are one: some hundred photographs cannot tell them apart by far, and between them
# the gap decides, for a score that no threshold is near to does not flip on a device.
INDIFFERENCE = 0.01
# The same for the mean IoU of masks, of which there are more pixels to know it by.
MASK_INDIFFERENCE = 0.005
# Thresholds that rule `risk` tests. In a sequence fixed beforehand more of them cost no confidence.
CANDIDATES = 1001


@dataclass(frozen=True)
class DecisionRule:
    """How the verdict threshold is chosen.

    Attributes:
        name: one of ``RULES``: highest F1, highest Youden index (true minus false positive rate), a ``threshold``
            that is given, or the largest threshold whose miss rate is bounded by ``max_miss_rate``.
        threshold: in logits, for ``fixed`` alone.
        max_miss_rate: share of defective parts, for ``risk`` alone.
        confidence: of every bound, 1 - delta.

    Raises:
        InputError: the values do not belong together.
    """

    name: str = "f1"
    threshold: float | None = None
    max_miss_rate: float | None = None
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise InputError(
                "there is no such rule for the threshold", wanted=", ".join(RULES), got=self.name
            )
        for owner, option, value in (
            ("fixed", "threshold", self.threshold),
            ("risk", "max_miss_rate", self.max_miss_rate),
        ):
            flag = "--" + option.replace("_", "-")
            if (self.name == owner) != (value is not None):
                raise InputError(
                    f"rule {self.name} {'needs' if self.name == owner else 'takes no'} {option}",
                    next_step=f"--rule {owner} {flag} VALUE"
                    if value is None
                    else f"--rule {owner}, or no {flag}",
                )
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise InputError("the threshold is not a finite logit", got=self.threshold)
        if self.max_miss_rate is not None and not 0 < self.max_miss_rate < 1:
            raise InputError("the miss rate is no share", wanted="above 0, below 1", got=self.max_miss_rate)
        if not 0.5 <= self.confidence < 1:
            raise InputError("the confidence is no share", wanted="0.5 to below 1", got=self.confidence)


HIGHEST_F1 = DecisionRule()


@dataclass(frozen=True, eq=False)
class Scored:
    """Full-precision logits (float [N]) of ``samples``, in their order."""

    samples: Sequence[Sample]
    scores: ArrayLike

    @property
    def defective(self) -> list[bool]:
        return [sample.defective for sample in self.samples]

    @property
    def groups(self) -> list[str]:
        return [sample.group for sample in self.samples]


@dataclass(frozen=True)
class ChosenThreshold:
    """The rule that turns a defect logit into a verdict, and what it does on ``val``.

    Attributes:
        miss_rate, false_alarm_rate, n: of the photographs of ``val``, as ``edgeqc evaluate`` counts them.
        confidence: exact bounds (``miss_rate_upper``, ``false_alarm_rate_upper`` at ``level``) of the *parts* of
            ``val``. Only *indicative*: ``val`` chose the weights and, for most rules, the threshold.
        guarantee: what holds without such reservations (``quantize.guarantee.Guarantee``), or None.
        guarantee_reason: why there is none, or None.
    """

    threshold: float
    rule: str
    miss_rate: float
    false_alarm_rate: float
    confidence: dict[str, Any]
    n: int
    guarantee: dict[str, Any] | None = None
    guarantee_reason: str | None = f"there is no split `{DECIDE}`: parts that nothing else has used"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def explain(decision: Mapping[str, Any]) -> str:
    """One line for people about the decision in a ``run.json`` or a manifest; also of an older version."""
    head = f"threshold {decision['threshold']:.3f} by rule {decision.get('rule', 'fixed')}: "
    known = decision.get("guarantee")
    if known:
        alarms = known["false_alarm_rate_upper"]
        return (
            f"{head}at most {known['miss_rate_upper']:.2%} of defective parts missed"
            + (f", at most {alarms:.2%} of good parts called defective" if alarms is not None else "")
            + f", each with confidence {known['confidence']:g} ({known['misses']} of {known['parts']} and"
            f" {known['false_alarms']} of {known['good_parts']} parts of split {known['split']},"
            f" {known['network']})"
        )
    text = head + "no guarantee on the miss rate"
    if decision.get("guarantee_reason"):
        text += f", {decision['guarantee_reason']}"
    seen = decision.get("confidence")
    if isinstance(seen, Mapping) and "miss_rate_upper" in seen:
        text += (
            f"; val indicates at most {seen['miss_rate_upper']:.2%}"
            f" ({seen['misses']} of {seen['positives']} missed)"
        )
    return text


def check_decidable(rule: DecisionRule, samples: Sequence[Sample]) -> list[Sample]:
    """The samples of split ``decide`` among ``samples`` (all of the data set), after the checks that need no score.

    Raises:
        InputError: an image of ``decide`` is elsewhere in the data set too, or in two parts of ``decide``.
        GuaranteeError: rule ``risk``, and too few defective parts for the miss rate that was asked for.
    """
    held_out = [sample for sample in samples if sample.split == DECIDE]
    if rule.max_miss_rate is not None:
        parts = count_defective_parts((sample.group, sample.defective) for sample in held_out)
        where = f"split `{DECIDE}`" if held_out else f"a data set without a split `{DECIDE}`"
        check_enough_parts(parts, rule.max_miss_rate, rule.confidence, where)
    refuse_copies(samples)
    return held_out


def refuse_copies(samples: Sequence[Sample]) -> None:
    """The bytes of an image in ``decide`` may be in no other part of the data set: a copy is no new part.

    Raises:
        InputError: naming both rows.
    """
    if not any(sample.split == DECIDE for sample in samples):
        return
    first: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda sample: sample.split != DECIDE):
        digest = sha256(sample.image)
        twin = first.get(digest)
        if twin is None:
            if sample.split == DECIDE:
                first[digest] = sample
        elif sample.group != twin.group:
            raise InputError(
                f"an image of split `{DECIDE}` is in the data set twice, so it is no part of its own",
                wanted=f"images of `{DECIDE}` in no other split and in one group only",
                got=f"{twin.id} (row {twin.row}) and {sample.id} (row {sample.row}, split {sample.split})",
                next_step="remove one of them, or give both the same group",
            )


def decide(val: Scored, held_out: Scored | None, rule: DecisionRule = HIGHEST_F1) -> ChosenThreshold:
    """Choose the threshold by ``rule``, and bound its miss rate by the parts of split ``decide`` if there are any.

    Raises:
        GuaranteeError: rule ``risk``, and the scores do not support the miss rate that was asked for.
    """
    if rule.max_miss_rate is not None:
        if held_out is None:
            raise ValueError("rule risk needs the scores of split decide")
        rule_threshold = _bounded_threshold(val, held_out, rule)
        chosen = choose_threshold(
            val.defective,
            val.scores,
            val.groups,
            replace(rule, name="fixed", threshold=rule_threshold, max_miss_rate=None),
        )
        chosen = replace(chosen, rule=rule.name)
    else:
        chosen = choose_threshold(val.defective, val.scores, val.groups, rule)
    if held_out is None:
        return chosen
    parts = gather_parts(held_out.defective, held_out.scores, held_out.groups)
    if not len(parts.defective):
        return replace(chosen, guarantee_reason=f"split `{DECIDE}` has no defective part")
    bound = guarantee(
        parts,
        chosen.threshold,
        confidence=rule.confidence,
        split=DECIDE,
        samples_digest=dataset_digest(list(held_out.samples)),
        alpha=rule.max_miss_rate,
    )
    return replace(chosen, guarantee=bound.as_dict(), guarantee_reason=None)


def choose_threshold(
    defective: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str] | None = None,
    rule: DecisionRule = HIGHEST_F1,
) -> ChosenThreshold:
    """The threshold of rule ``f1``, ``youden`` or ``fixed`` on these photographs (labels 0/1 [N], logits [N]).

    What is highest is the F1 (or Youden index) to be expected of *new* photographs: the scores of each class stand
    for a smooth density (Gaussian kernels of Silverman's width, "Density estimation", 1986), because the best F1 of
    the very photographs at hand hangs on one or two of them. Candidates are the middles between neighbouring
    scores: scores on a device differ a little, and that must not change a verdict.
    """
    label = np.asarray(defective, dtype=bool)
    score = np.asarray(scores, dtype=np.float64)
    if label.shape != score.shape or label.ndim != 1:
        raise ValueError(f"labels {label.shape} and scores {score.shape} must be two lists of one length")
    if not label.any() or label.all():
        raise ValueError("a threshold needs good and defective samples to stand between")
    if rule.threshold is None:
        threshold = _in_float32(_best_threshold(label, score, rule), score)
    else:
        threshold = rule.threshold
    verdict = score >= threshold
    parts = gather_parts(label, score, groups)
    positives, misses = len(parts.defective), parts.misses(threshold)
    negatives, alarms = len(parts.good), parts.false_alarms(threshold)
    return ChosenThreshold(
        threshold=threshold,
        rule=rule.name,
        miss_rate=float((label & ~verdict).sum() / label.sum()),
        false_alarm_rate=float((~label & verdict).sum() / (~label).sum()),
        confidence={
            "kind": "indicative",
            "split": "val",
            "level": rule.confidence,
            "miss_rate_upper": upper_bound(misses, positives, rule.confidence),
            "positives": positives,
            "misses": misses,
            "false_alarm_rate_upper": upper_bound(alarms, negatives, rule.confidence) if negatives else None,
            "negatives": negatives,
            "false_alarms": alarms,
        },
        n=int(label.size),
    )


def choose_mask_threshold(ious: ArrayLike, areas: ArrayLike, candidates: ArrayLike) -> tuple[float, float]:
    """The mask threshold (a logit), and the mean IoU of the masks at it.

    Of the candidates whose mean IoU is within `MASK_INDIFFERENCE` of the best, the one around which the masks change
    least: a device's logits differ a little, and what that adds to a mask or takes from it is the area between two
    thresholds. Of equal ones the one nearest to 0 is taken.

    Args:
        ious, areas: [candidates, positives], IoUs with the truth and pixels of the masks, made by the runtime's own
            postprocessing at each candidate.
        candidates: logits, ascending.
    """
    steps = np.asarray(candidates, dtype=np.float64)
    table, pixels = np.asarray(ious, dtype=np.float64), np.asarray(areas, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(steps) or table.size == 0 or pixels.shape != table.shape:
        raise ValueError(f"IoUs of shape {table.shape}, areas of {pixels.shape} for {len(steps)} candidates")
    mean, total = table.mean(axis=1), pixels.sum(axis=1)
    places = np.arange(len(steps))
    above, below = total[np.minimum(places + 1, len(steps) - 1)], total[np.maximum(places - 1, 0)]
    span = np.minimum(places + 1, len(steps) - 1) - np.maximum(places - 1, 0)
    # The share of a mask that stays over one step to the next; nothing of an empty one.
    kept = np.divide(above, below, out=np.zeros_like(total), where=below > 0) ** (1 / np.maximum(span, 1))
    as_good = np.flatnonzero(mean >= mean.max() - MASK_INDIFFERENCE)
    steady = as_good[kept[as_good] >= kept[as_good].max() - 1e-12]
    chosen = steady[np.argmin(np.abs(steps[steady]))]
    return float(steps[chosen]), float(mean[chosen])


def _in_float32(threshold: float, score: NDArray[np.float64]) -> float:
    """The threshold as a float32 with the same verdicts: scores are float32, and so may a comparison be."""
    rounded = float(np.float32(threshold))
    if ((score >= rounded) == (score >= threshold)).all():
        return rounded
    return float(score[score >= threshold].min())


def _best_threshold(label: NDArray[np.bool_], score: NDArray[np.float64], rule: DecisionRule) -> float:
    """Of the candidates whose expected quality is as good as the best, the one in the widest gap of scores."""
    levels = np.unique(score)
    candidates, gaps = (levels[1:] + levels[:-1]) / 2, np.diff(levels)
    if not len(candidates):  # all scores equal: calling everything defective is the best that F1 can do
        return float(levels[0])
    hits, alarms = _expected_above(score[label], candidates), _expected_above(score[~label], candidates)
    if rule.name == "youden":
        quality = hits / label.sum() - alarms / (~label).sum()
    else:
        quality = 2 * hits / (label.sum() + hits + alarms)
    as_good = np.flatnonzero(quality >= quality.max() - INDIFFERENCE)
    return float(candidates[as_good[np.argmax(gaps[as_good])]])


def _expected_above(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many of as many new scores are expected at or above each threshold, by a kernel estimate of ``scores``."""
    from scipy.special import ndtr

    width = 0.9 * scores.std() * len(scores) ** -0.2
    if width == 0:
        return np.asarray((scores[None] >= thresholds[:, None]).sum(axis=1), dtype=np.float64)
    parts = [
        ndtr((scores[None] - some[:, None]) / width).sum(axis=1)
        for some in np.array_split(thresholds, -(-len(thresholds) // CHUNK))
    ]
    return np.asarray(np.concatenate(parts))


def _bounded_threshold(val: Scored, held_out: Scored, rule: DecisionRule) -> float:
    """Rule ``risk``: the largest candidate that passes. Candidates are spaced evenly over the scores of ``val``."""
    assert rule.max_miss_rate is not None
    seen = np.asarray(val.scores, dtype=np.float64)
    candidates = np.linspace(seen.min(), seen.max(), CANDIDATES).astype(np.float32).astype(np.float64)
    parts = gather_parts(held_out.defective, held_out.scores, held_out.groups)
    threshold = riskiest_safe_threshold(parts.defective, candidates, rule.max_miss_rate, rule.confidence)
    if threshold is not None:
        return threshold
    safest = float(candidates.min())
    misses, trials = parts.misses(safest), len(parts.defective)
    possible = ceil_rate(upper_bound(misses, trials, rule.confidence))
    raise GuaranteeError(
        f"no threshold keeps the miss rate at {rule.max_miss_rate:g} at confidence {rule.confidence:g}",
        wanted=f"few enough misses among {trials} defective parts of split `{DECIDE}`",
        got=f"{misses} missed at the safest threshold, {safest:.2f}, which calls all of val defective:"
        f" they support {possible} at best",
        next_step="the trained network is kept: the same command with another decision (--max-miss-rate, --rule)"
        " or with more parts in `decide` goes on from there without training",
    )
