from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_artifacts import write_artifact
from edge.artifact import write_manifest
from edge.cli import main
from edge.errors import InputError
from firmware_bridge import checks
from firmware_bridge.selftest import (
    ABSENT,
    FAIL,
    NOT_CONFIGURED,
    NOT_JUDGED,
    NOT_RUN,
    PASS,
    SelfTest,
    selftest,
    table,
)

pytestmark = pytest.mark.usefixtures("fake_runtime")


def states(test: SelfTest) -> dict[str, str]:
    return {check.name: check.state for check in test.checks}


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MEASURE_S", 0.05)


def test_a_sound_artifact_passes_and_what_is_not_tested_is_said(tmp_path: Path) -> None:
    test = selftest(write_artifact(tmp_path / "a"))
    assert test.passed and test.exit_code == 0 and test.reason == "" and not test.stand_in
    assert states(test) == {
        "integrity": PASS,
        "backend": PASS,
        "load": PASS,
        "golden vectors": PASS,
        "latency": NOT_CONFIGURED,
        "memory": NOT_CONFIGURED,
        "camera": NOT_CONFIGURED,
        "line outputs": NOT_CONFIGURED,
    }
    assert test.ran_on is not None and test.ran_on["sdk"] == "fake"
    assert test.measured["golden_frames"] == test.measured["golden_bytes_equal"] == 2
    assert 0 < test.measured["latency_p50_ms"] <= test.measured["latency_p95_ms"]


@pytest.mark.parametrize(
    ("behaviour", "row", "state", "found"),
    [
        ("wrong", "golden vectors", FAIL, "0 of 2 verdicts"),
        ("raise", "golden vectors", FAIL, "ZeroDivisionError"),
        ("other bytes", "golden vectors", FAIL, "required here"),
        ("crash", "runtime", FAIL, "SIGSEGV"),
        ("no device", "load", ABSENT, "no such device"),
        ("chatty", "golden vectors", PASS, "2 of 2"),
    ],
)
def test_a_runtime_that_misbehaves(tmp_path: Path, behaviour: str, row: str, state: str, found: str) -> None:
    test = selftest(write_artifact(tmp_path / "a", behaviour=behaviour))
    check = next(check for check in test.checks if check.name == row)
    assert check.state == state and found in check.found
    assert test.exit_code == {FAIL: 3, ABSENT: 4, PASS: 0}[state]
    assert (state == PASS) or (check.advice and check.advice in table(test) and row in test.reason)


def test_a_runtime_that_hangs_ends(tmp_path: Path) -> None:
    test = selftest(write_artifact(tmp_path / "a", behaviour="hang"), timeout_s=2)
    assert test.exit_code == 3 and "no answer within 2 s" in test.reason


def test_other_bytes_are_allowed_where_sdk_or_processor_differ(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", behaviour="other bytes")
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    golden["made_on"]["version"] = "0"
    folder = write_artifact(tmp_path / "b", behaviour="other bytes", golden=golden)
    test = checks.examine(folder)
    assert states(test)["golden vectors"] == PASS and test.measured["golden_bytes_equal"] == 0


def test_without_golden_vectors_nothing_is_proven(tmp_path: Path) -> None:
    test = checks.examine(write_artifact(tmp_path / "a", golden=None))
    assert states(test)["golden vectors"] == FAIL and states(test)["latency"] == NOT_RUN


@pytest.mark.parametrize(
    ("budgets", "latency", "memory"),
    [
        ({"latency_budget_ms": 1000, "memory_budget_bytes": 8 << 30}, PASS, PASS),
        ({"latency_budget_ms": 5, "memory_budget_bytes": 8 << 30}, FAIL, PASS),
        ({"latency_budget_ms": 1000, "memory_budget_bytes": 1 << 20}, PASS, FAIL),
        ({"latency_budget_ms": 5, "memory_budget_bytes": 1 << 20}, FAIL, FAIL),
    ],
)
def test_budgets(tmp_path: Path, budgets: dict[str, Any], latency: str, memory: str) -> None:
    test = checks.examine(write_artifact(tmp_path / "a", behaviour="slow", **budgets))
    assert (states(test)["latency"], states(test)["memory"]) == (latency, memory)


def test_memory_is_the_models_and_not_the_callers(tmp_path: Path) -> None:
    ballast = np.ones(300 << 20, np.uint8)
    lean = selftest(write_artifact(tmp_path / "a")).measured["memory_peak_bytes"]
    fat = selftest(write_artifact(tmp_path / "b", behaviour="fat")).measured["memory_peak_bytes"]
    assert ballast.size > lean and lean < 200 << 20 and fat - lean > 30 << 20


def test_a_stand_in_is_never_implied_always_marked_and_has_no_budget(tmp_path: Path) -> None:
    folder = write_artifact(
        tmp_path / "a",
        backend="bridge-absent",
        stand_in={"backend": "bridge-fake", "device": "cpu"},
        latency_budget_ms=0.0001,
        memory_budget_bytes=1,
    )
    without = checks.examine(folder)
    assert states(without)["backend"] == ABSENT and states(without)["load"] == NOT_RUN
    assert without.exit_code == 4 and not without.stand_in
    test = selftest(folder, stand_in=True)
    assert test.passed and test.stand_in and test.ran_on is not None and test.ran_on["stand_in"]
    assert states(test)["latency"] == states(test)["memory"] == NOT_JUDGED
    assert "STAND-IN" in table(test) and "healthy (stand-in)" in table(test)


def test_asking_for_a_stand_in_where_there_is_none_changes_nothing(tmp_path: Path) -> None:
    test = checks.examine(write_artifact(tmp_path / "a"), stand_in=True)
    assert test.passed and not test.stand_in


def test_an_unknown_backend_is_missing(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a")
    facts = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, {**facts, "backend": "abacus"})
    test = checks.examine(folder)
    assert test.exit_code == 4 and "abacus" in test.reason


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz", "gate.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["byte", "truncated", "gone"])
def test_a_damaged_artifact_is_exit_3(
    tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_artifact(tmp_path / "a")
    data = bytearray((folder / file).read_bytes())
    data[0] ^= 0xFF
    if damage == "gone":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(data if damage == "byte" else data[: len(data) // 2])
    assert main(["selftest", str(folder), "--json"]) == 3
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert not facts["passed"] and facts["checks"][0]["name"] == "integrity"
    assert facts["checks"][0]["state"] == FAIL and file in facts["checks"][0]["found"]
    assert "NOT HEALTHY" in shown.err and "Traceback" not in shown.err


def test_no_such_folder_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no artifact folder"):
        selftest(tmp_path / "nothing")
    for arguments in ([str(tmp_path / "nothing")], [], [str(tmp_path), "--slots", str(tmp_path)]):
        assert main(["selftest", *arguments]) == 2


def test_a_child_that_cannot_start_is_a_failing_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_artifact(tmp_path / "a")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    test = selftest(folder)
    assert test.exit_code == 3 and "Error" in test.reason
