"""The Edge TPU lint against what Google's compiler made of real models."""

from __future__ import annotations

import pytest

pytest.importorskip("ai_edge_litert")

from benchmarks import edgetpu_lint as bench
from targets.edgetpu_compiler import parse_log
from targets.edgetpu_lint import differences, lint
from targets.edgetpu_lint.evidence import REPORT, VENDOR, Evidence, without


@pytest.fixture(scope="module")
def cases(ground_truth):
    return bench.read_cases(ground_truth)


def test_models_are_foretold_exactly(cases):
    share = bench.foretold(cases) / len(cases)
    assert len(cases) >= 80 and share >= bench.BAR_ALL / 100


def test_models_with_operations_on_the_cpu_are_foretold_exactly(cases):
    hard = [case for case in cases if case.expected["on_cpu"]]
    assert len(hard) >= 40 and bench.foretold(hard) / len(hard) >= bench.BAR_WITH_CPU / 100


def test_nothing_is_said_of_a_place_where_it_is_not(cases):
    """Unknown is allowed, wrong is not."""
    assert [case.expected["model"] for case in cases if case.is_wrong(lint(case.graph))] == []


def test_reasons_are_the_logs_own(cases):
    pairs = [pair for pair in map(bench.reasons, cases) if pair is not None]
    assert any(said for _, said in pairs)
    assert all(predicted == said for predicted, said in pairs)


def test_the_logs_have_nothing_to_add(cases):
    for case in cases:
        if case.expected.get("compiler_log"):
            assert differences(lint(case.graph), parse_log(case.expected["compiler_log"])) == []


def test_each_family_is_mostly_foretold_by_the_others(cases):
    right = 0
    for family in {case.family for case in cases}:
        own = [case for case in cases if case.family == family]
        right += bench.foretold(own, without((family,)))
    assert right / len(cases) >= 0.8


def test_every_witness_of_the_ground_truth_is_there(ground_truth):
    from targets.edgetpu_lint import evidence

    witnesses = [value for value in vars(evidence).values() if isinstance(value, Evidence)]
    owners = {entry.family for entry in bench.read_cases(ground_truth)}
    seen = [witness for witness in witnesses if witness.kind not in (VENDOR, REPORT)]
    assert seen and {witness.kind for witness in seen} == owners
    for witness in seen:
        assert (ground_truth / "models" / witness.where).is_file()


def test_the_benchmarks_rows_say_the_same(cases):
    rows = {row["id"]: row for row in bench.truth_rows(cases)}
    assert len(rows) == len(list(bench.truth_rows(cases)))
    assert rows["truth.all"]["passed"] and rows["truth.with_cpu"]["passed"]
    assert rows["left_out"]["value"] == sum(
        row["value"] for id, row in rows.items() if id.startswith("left_out.") and id != "left_out.reports"
    )
