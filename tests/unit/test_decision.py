"""Thresholds and what is promised of them: rules, parts, exact bounds, and a simulation that the promise holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import binom, norm

from edge.errors import InputError
from edge.samples import Sample
from quantize.decision import (
    INDIFFERENCE,
    DecisionRule,
    Scored,
    check_decidable,
    choose_mask_threshold,
    choose_threshold,
    decide,
    explain,
)
from quantize.errors import GuaranteeError
from quantize.guarantee import (
    ceil_rate,
    gather_parts,
    parts_needed,
    riskiest_safe_threshold,
    smallest_rate,
    upper_bound,
)


def test_separable_scores_are_split_in_the_middle_of_the_gap():
    chosen = choose_threshold([0, 0, 1, 1], [-3.0, -1.0, 2.0, 5.0])
    assert chosen.threshold == 0.5 and chosen.miss_rate == 0 and chosen.false_alarm_rate == 0
    assert chosen.n == 4 and chosen.rule == "f1"


def test_of_equally_good_thresholds_the_one_in_the_widest_gap():
    # Both find F1 = 2/3: at -0.5 two hits and two false alarms, at 5.5 one hit and one miss.
    label, score = [0, 1, 0, 0, 1], [-1.0, 0.0, 1.0, 2.0, 9.0]
    assert _f1(label, score, -0.5) == _f1(label, score, 5.5) == pytest.approx(2 / 3)
    assert choose_threshold(label, score).threshold == 5.5


def _f1(label, score, threshold):
    verdict = np.asarray(score) >= threshold
    hits = (np.asarray(label, bool) & verdict).sum()
    return 2 * hits / (sum(label) + verdict.sum())


def _expected_f1(label, score, threshold):
    """F1 of new photographs: a normal distribution of Silverman's width around each score."""
    above = {}
    for kind in (True, False):
        own = np.array([x for x, y in zip(score, label) if bool(y) is kind], dtype=np.float64)
        width = 0.9 * own.std() / len(own) ** 0.2
        above[kind] = sum(norm.sf(threshold, x, width) if width else float(x >= threshold) for x in own)
    return 2 * above[True] / (sum(map(bool, label)) + above[True] + above[False])


@given(st.lists(st.tuples(st.booleans(), st.integers(-200, 200)), min_size=2, max_size=40))
def test_no_threshold_between_scores_is_expected_to_be_better(rows):
    label, score = [row[0] for row in rows], [row[1] / 10 for row in rows]
    if not any(label) or all(label):
        with pytest.raises(ValueError, match="good and defective"):
            choose_threshold(label, score)
        return
    chosen = choose_threshold(label, score)
    assert chosen.threshold == np.float32(chosen.threshold)
    levels = np.unique(score)
    if len(levels) == 1:
        assert chosen.threshold <= levels[0]
        return
    best = max(_expected_f1(label, score, t) for t in (levels[1:] + levels[:-1]) / 2)
    assert _expected_f1(label, score, chosen.threshold) >= best - INDIFFERENCE - 1e-5


def test_of_thresholds_that_are_as_good_the_one_in_the_widest_gap_is_taken():
    label = [False] * 40 + [True] * 40
    score = [*np.linspace(-4, -1, 40), *np.linspace(1, 4, 39), 0.2]
    assert choose_threshold(label, score).threshold == pytest.approx(-0.4, abs=0.01)
    # A gap does not buy a worse verdict.
    assert choose_threshold(label, [*np.linspace(-4, 0.1, 40), *np.linspace(0.2, 2, 39), 6.0]).threshold < 0.3


@pytest.mark.parametrize(
    ("good", "defective"),
    [
        pytest.param((-2, 1.2), (2, 1.2), id="alike"),
        pytest.param((-3, 0.5), (3, 2.5), id="narrow good, wide defective"),
        pytest.param((-3, 2.0), (3, 0.7), id="wide good, narrow defective"),
    ],
)
@pytest.mark.parametrize("counts", [(60, 30), (240, 20)])
def test_new_photographs_are_decided_better_than_by_the_best_f1_of_those_at_hand(good, defective, counts):
    random = np.random.default_rng(0)
    label = np.repeat([False, True], counts)
    reached = []
    for _ in range(150):
        score = np.concatenate([random.normal(*good, counts[0]), random.normal(*defective, counts[1])])
        middles = np.convolve(np.sort(score), [0.5, 0.5], "valid")
        at_hand = max(middles, key=lambda t: _f1(label, score, t))
        expected, found = [], (at_hand, choose_threshold(label, score).threshold)
        for threshold in found:
            hits, alarms = counts[1] * norm.sf(threshold, *defective), counts[0] * norm.sf(threshold, *good)
            expected.append(2 * hits / (counts[1] + hits + alarms))
        reached.append(expected)
    at_hand, ours = np.mean(reached, axis=0)
    assert ours > at_hand


def test_youden_weighs_the_rates_and_not_the_counts():
    # To catch the second of two costs three false alarms in 21: F1 does not take that, Youden does.
    label = [1, 0, 0, 0, *[0] * 18, 1]
    score = [0.0, 1.0, 2.0, 2.5, *[-9.0] * 18, 9.0]
    assert choose_threshold(label, score).threshold > 2
    chosen = choose_threshold(label, score, rule=DecisionRule("youden"))
    assert chosen.threshold == -4.5 and chosen.rule == "youden" and chosen.miss_rate == 0


def test_a_fixed_threshold_is_taken_as_it_is():
    chosen = choose_threshold([0, 1, 1], [-1.0, 0.05, 3.0], rule=DecisionRule("fixed", threshold=0.1))
    assert chosen.threshold == 0.1 and chosen.rule == "fixed" and chosen.miss_rate == 0.5


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "vote"}, "f1, youden, fixed, risk"),
        ({"name": "fixed"}, "--threshold"),
        ({"name": "f1", "threshold": 0.0}, "--rule fixed"),
        ({"name": "fixed", "threshold": float("nan")}, "finite"),
        ({"name": "risk"}, "--max-miss-rate"),
        ({"name": "youden", "max_miss_rate": 0.1}, "--rule risk"),
        ({"name": "risk", "max_miss_rate": 0.0}, "above 0"),
        ({"name": "risk", "max_miss_rate": float("nan")}, "above 0"),
        ({"confidence": 1.0}, "below 1"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(values, named):
    with pytest.raises(InputError) as caught:
        DecisionRule(**values)
    assert named in str(caught.value)


# --- parts and exact bounds


def test_a_part_is_missed_when_any_of_its_defective_photographs_is():
    groups = ["a", "a", "a", "b", "b", "c", "c", "d"]
    label = [1, 1, 0, 1, 1, 0, 0, 0]
    score = [5.0, -1.0, 9.0, 2.0, 3.0, -4.0, 1.0, -5.0]
    parts = gather_parts(label, score, groups)
    assert sorted(parts.defective) == [-1.0, 2.0]  # the lowest of a and of b
    assert sorted(parts.good) == [-5.0, 1.0]  # the highest of c and of d; a's good side counts nowhere
    assert parts.misses(0.0) == 1 and parts.false_alarms(0.0) == 1 and parts.photographs == 8
    assert len(gather_parts(label, score).defective) == 4  # without groups each photograph is a part


rows = st.lists(
    st.tuples(st.booleans(), st.integers(-400, 400).map(lambda n: n / 16), st.integers(0, 9)),
    min_size=1,
    max_size=60,
)


@given(rows, st.integers(1, 4))
def test_duplicated_photographs_are_no_new_parts(photographs, copies):
    once = gather_parts(*map(list, zip(*photographs)))
    again = gather_parts(*map(list, zip(*(photographs * copies))))
    assert sorted(once.defective) == sorted(again.defective) and sorted(once.good) == sorted(again.good)


@given(rows, st.integers(-400, 400).map(lambda n: n / 16))
def test_parts_are_missed_as_their_photographs_are(photographs, threshold):
    label, score, groups = map(list, zip(*photographs))
    parts = gather_parts(label, score, groups)
    missed = {g for y, s, g in photographs if y and s < threshold}
    alarmed = {g for _, s, g in photographs if s >= threshold} - {g for y, _, g in photographs if y}
    assert (parts.misses(threshold), parts.false_alarms(threshold)) == (len(missed), len(alarmed))


def test_the_upper_bound_is_the_exact_one():
    # No miss in n: 1 - 0.05 ** (1/n), the "rule of three".
    assert upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_bound(5, 5) == 1.0
    with pytest.raises(ValueError, match="7 events in 5"):
        upper_bound(7, 5)


@given(st.integers(1, 300), st.floats(0.5, 0.999), st.data())
def test_bounds_are_ordered(trials, confidence, data):
    events = data.draw(st.integers(0, trials))
    bound = upper_bound(events, trials, confidence)
    assert events / trials <= bound <= 1
    if events < trials:
        assert bound < upper_bound(events + 1, trials, confidence)
        assert binom.cdf(events, trials, bound) == pytest.approx(1 - confidence, rel=1e-6)
    assert bound <= upper_bound(events, trials, (1 + confidence) / 2)
    assert upper_bound(events, trials + 1, confidence) <= bound


@given(st.floats(0.001, 0.9), st.floats(0.5, 0.999))
def test_the_parts_needed_are_the_fewest_that_will_do(rate, confidence):
    needed = parts_needed(rate, confidence)
    assert (1 - rate) ** needed <= 1 - confidence
    assert needed == 1 or (1 - rate) ** (needed - 1) > 1 - confidence
    # What is printed as possible is granted when asked for.
    assert parts_needed(min(0.9999, ceil_rate(smallest_rate(needed, confidence))), confidence) <= needed


def test_well_known_numbers_of_parts():
    assert parts_needed(0.05, 0.95) == 59 and parts_needed(0.01, 0.95) == 299 and parts_needed(0.1, 0.9) == 22
    assert smallest_rate(0) == 1.0


scores = st.lists(st.integers(-80, 80).map(lambda n: n / 8), min_size=1, max_size=80)


@given(scores, st.floats(0.02, 0.9), st.floats(0.02, 0.9), st.integers(-64, 64))
def test_the_safe_threshold_is_monotone_and_moves_with_the_scores(values, one, other, shift):
    score, candidates = np.array(values), np.linspace(-12, 12, 193)
    low, high = (riskiest_safe_threshold(score, candidates, rate, 0.95) for rate in sorted((one, other)))
    assert low is None or (high is not None and low <= high)
    assert riskiest_safe_threshold(score + shift, candidates + shift, max(one, other), 0.95) == (
        None if high is None else high + shift
    )
    bounds = [upper_bound(int((score < c).sum()), len(score)) for c in candidates]
    within = [c for c, bound in zip(candidates, bounds) if bound <= max(one, other)]
    assert high == (max(within) if within else None)  # "the largest whose exact bound holds"


# --- the promise, simulated

DRAWS = 1_000


def most_violations(delta):
    """What 1,000 draws of an event of probability ``delta`` exceed once in 10,000 times."""
    return int(binom.ppf(1 - 1e-4, DRAWS, delta))


def draw_parts(random, parts, photographs, correlation):
    """Scores [DRAWS, parts] of the worst of ``photographs`` that share ``correlation`` of their variance."""
    shared = random.normal(size=(DRAWS, parts, 1)) * np.sqrt(correlation)
    own = random.normal(size=(DRAWS, parts, photographs)) * np.sqrt(1 - correlation)
    return 3 + 2 * (shared + own)


def true_miss_rate(threshold, photographs, correlation):
    """Probability that the lowest of the photographs lies below ``threshold``, by quadrature over the shared part."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    z = (np.asarray(threshold)[..., None] - 3) / 2
    below = ndtr((z - np.sqrt(correlation) * nodes) / np.sqrt(1 - correlation))
    return ((1 - (1 - below) ** photographs) * weights).sum(axis=-1) / weights.sum()


@pytest.mark.parametrize(("photographs", "correlation"), [(1, 0.0), (4, 0.7)])
@pytest.mark.parametrize(
    ("parts", "alpha", "delta"), [(60, 0.05, 0.05), (150, 0.05, 0.1), (300, 0.02, 0.05), (40, 0.2, 0.2)]
)
def test_the_promise_of_rule_risk_holds(parts, alpha, delta, photographs, correlation):
    random = np.random.default_rng([parts, photographs])
    drawn = draw_parts(random, parts, photographs, correlation)
    labels, groups = np.ones(parts * photographs), np.repeat(np.arange(parts), photographs)
    candidates = np.linspace(-12, 8, 401)
    chosen = [
        riskiest_safe_threshold(
            gather_parts(labels, draw.reshape(-1), groups).defective, candidates, alpha, 1 - delta
        )
        for draw in drawn
    ]
    certified = np.array([threshold for threshold in chosen if threshold is not None])
    violations = int((true_miss_rate(certified, photographs, correlation) > alpha).sum())
    assert violations <= most_violations(delta)
    # Not empty talk: thresholds are certified, and the test nearly spends its error probability.
    assert len(certified) > 0.9 * DRAWS
    reachable = binom.cdf(binom.ppf(delta, parts, alpha) - 1, parts, alpha)
    assert violations >= binom.ppf(1e-4, DRAWS, 0.6 * reachable)


def test_counting_photographs_as_parts_would_break_the_promise():
    """The simulation can fail: treating correlated photographs as parts exceeds what it tolerates."""
    parts, photographs, alpha, delta = 60, 4, 0.05, 0.05
    drawn = draw_parts(np.random.default_rng(0), parts, photographs, 0.7)
    candidates = np.linspace(-12, 8, 401)
    chosen = [riskiest_safe_threshold(d.reshape(-1), candidates, alpha, 1 - delta) for d in drawn]
    violations = (true_miss_rate(np.array(chosen, float), photographs, 0.7) > alpha).sum()
    assert violations > 2 * most_violations(delta)


@pytest.mark.parametrize("parts", [20, 75, 300])
@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_the_bound_at_a_fixed_threshold_holds(parts, delta):
    threshold = 0.0
    truth = float(true_miss_rate(threshold, 4, 0.7))
    misses = (
        (draw_parts(np.random.default_rng(parts), parts, 4, 0.7).min(axis=2) < threshold).sum(axis=1).tolist()
    )
    table = {k: upper_bound(k, parts, 1 - delta) for k in set(misses)}
    assert sum(table[k] < truth for k in misses) <= most_violations(delta)
    assert (
        np.mean([table[k] for k in misses]) < truth + 3.5 * np.sqrt(truth * (1 - truth) / parts) + 3 / parts
    )


def test_the_bound_on_false_alarms_holds_after_the_misses_chose_the_threshold():
    random, parts, delta = np.random.default_rng(5), 80, 0.1
    bad, good = random.normal(3, 2, (DRAWS, parts)), random.normal(-3, 2, (DRAWS, parts))
    violations = 0
    for defective, sound in zip(bad, good):
        threshold = riskiest_safe_threshold(defective, np.linspace(-8, 8, 321), 0.1, 1 - delta)
        alarms = int((sound >= threshold).sum())
        violations += upper_bound(alarms, parts, 1 - delta) < 1 - ndtr((threshold + 3) / 2)
    assert violations <= most_violations(delta)


# --- val and decide together


@pytest.fixture
def table(tmp_path):
    """A function that makes samples, with image files of their own bytes, from (split, group, defective)."""

    def make(rows):
        samples = []
        for row, (split, group, defective) in enumerate(rows, 2):
            image = Path(tmp_path / f"{split}-{row}.png")
            image.write_bytes(image.name.encode())
            samples.append(Sample(image.name, image, None, bool(defective), split, group, "", row))
        return samples

    return make


def split_of(table, split, parts, offset=0.0, photographs=1):
    """Samples and scores: half of the parts good around -3, half defective around 3."""
    random = np.random.default_rng(parts)
    rows = [(split, f"{split}-{i}", i % 2) for i in range(parts) for _ in range(photographs)]
    scores = np.array([3.0 if row[2] else -3.0 for row in rows]) + random.uniform(-2, 2, len(rows)) + offset
    return Scored(table(rows), np.float32(scores))


def test_without_a_split_decide_nothing_is_promised(table):
    val = split_of(table, "val", 40, photographs=3)
    assert check_decidable(DecisionRule(), val.samples) == []
    chosen = decide(val, None).as_dict()
    assert chosen["guarantee"] is None and "`decide`" in chosen["guarantee_reason"]
    assert chosen["confidence"]["kind"] == "indicative" and chosen["confidence"]["positives"] == 20
    assert chosen["n"] == 120  # photographs, as evaluate counts
    assert "no guarantee" in explain(chosen) and "val indicates at most 13.91%" in explain(chosen)


@pytest.mark.parametrize(
    "rule", [DecisionRule(), DecisionRule("youden"), DecisionRule("fixed", threshold=0.5)]
)
def test_other_rules_never_look_at_decide(table, rule):
    val = split_of(table, "val", 40)
    near, far = (
        split_of(table, "decide", 50, photographs=2),
        split_of(table, "decide", 50, -4.0, photographs=2),
    )
    chosen, moved = decide(val, near, rule), decide(val, far, rule)
    assert chosen.threshold == moved.threshold == decide(val, None, rule).threshold
    known = chosen.guarantee
    assert known["method"] == "clopper-pearson" and known["alpha"] is None and known["split"] == "decide"
    assert (known["parts"], known["misses"], known["photographs"]) == (25, 0, 100)
    assert known["miss_rate_upper"] == pytest.approx(1 - 0.05 ** (1 / 25))
    assert known["network"] == "full precision" and len(known["samples_digest"]) == 64
    assert moved.guarantee["misses"] > 10 and moved.guarantee["miss_rate_upper"] > 0.5
    assert "confidence 0.95 (0 of 25 and" in explain(chosen.as_dict())


def test_rule_risk_promises_what_was_asked_for_and_no_more(table):
    val, held_out = split_of(table, "val", 40), split_of(table, "decide", 200, -1.0)
    strict, loose = (
        decide(val, held_out, DecisionRule("risk", max_miss_rate=rate, confidence=0.9))
        for rate in (0.03, 0.2)
    )
    assert strict.rule == "risk" and strict.threshold <= loose.threshold
    for chosen, rate in ((strict, 0.03), (loose, 0.2)):
        known = chosen.guarantee
        assert known["alpha"] == known["miss_rate_upper"] == rate and known["method"] == "fixed-sequence"
        assert upper_bound(known["misses"], known["parts"], 0.9) <= rate
        assert np.float32(chosen.threshold) == chosen.threshold
    assert loose.guarantee["misses"] > strict.guarantee["misses"]


def test_too_few_parts_are_refused_with_what_they_can_do(table):
    rule = DecisionRule("risk", max_miss_rate=0.05)
    samples = [*split_of(table, "val", 4).samples, *split_of(table, "decide", 60, photographs=4).samples]
    with pytest.raises(GuaranteeError) as caught:
        check_decidable(rule, samples)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "59 defective parts" in message and "30 defective parts" in message and "0.0951" in message
    check_decidable(replace(rule, max_miss_rate=0.0951), samples)
    with pytest.raises(GuaranteeError, match="without a split `decide`"):
        check_decidable(rule, split_of(table, "val", 4).samples)


def test_scores_that_do_not_support_the_rate_are_refused_with_what_they_can_do(table):
    val, held_out = split_of(table, "val", 40), split_of(table, "decide", 200, -8.0)
    with pytest.raises(GuaranteeError) as caught:
        decide(val, held_out, DecisionRule("risk", max_miss_rate=0.05))
    assert caught.value.exit_code == 3
    assert "without training" in str(caught.value) and "they support 0." in str(caught.value)


def test_a_copy_of_a_kept_image_is_refused(table):
    rows = [("train", "a", 1), ("val", "b", 0), ("decide", "c", 1), ("decide", "c", 1), ("decide", "d", 0)]
    samples = table(rows)
    assert [s.group for s in check_decidable(DecisionRule(), samples)] == ["c", "c", "d"]
    samples[3].image.write_bytes(samples[2].image.read_bytes())  # twice in one part: no harm
    check_decidable(DecisionRule(), samples)
    for other in (0, 4):
        copied = table(rows)
        copied[other].image.write_bytes(copied[2].image.read_bytes())
        with pytest.raises(InputError, match="twice"):
            check_decidable(DecisionRule(), copied)
    copied = table(rows[:2])
    copied[1].image.write_bytes(copied[0].image.read_bytes())
    check_decidable(DecisionRule(), copied)  # elsewhere it is a finding of the data check


def test_decide_without_a_defective_part_says_so(table):
    val = split_of(table, "val", 40)
    chosen = decide(val, Scored(table([("decide", "x", 0)]), [-3.0]))
    assert chosen.guarantee is None and "no defective part" in chosen.guarantee_reason


def test_a_decision_of_an_older_run_is_explained_too():
    assert explain({"threshold": 1.5, "rule": "f1", "confidence": 0.95}).startswith(
        "threshold 1.500 by rule f1"
    )


# --- the mask's threshold


def test_the_mask_threshold_maximises_the_mean_iou():
    ious, areas = [[0.2, 0.2], [0.5, 0.7], [0.9, 0.1]], [[9, 9], [5, 5], [1, 1]]
    assert choose_mask_threshold(ious, areas, [-1.0, 0.0, 1.0]) == (0.0, pytest.approx(0.6))
    # A tie goes to the one nearest to even odds.
    even = [[0.5], [0.5], [0.5]]
    assert choose_mask_threshold(even, [[4], [4], [4]], [-2.0, 0.25, 1.0])[0] == 0.25


def test_of_mask_thresholds_that_are_as_good_the_one_is_taken_around_which_masks_change_least():
    steps, areas = [-1.0, -0.5, 0.0, 0.5, 1.0], [[101], [100], [99], [60], [20]]
    assert choose_mask_threshold([[0.4], [0.698], [0.7], [0.7], [0.2]], areas, steps)[0] == -0.5
    # Steadiness does not buy a worse mask.
    assert choose_mask_threshold([[0.4], [0.6], [0.7], [0.7], [0.2]], areas, steps)[0] == 0.0
