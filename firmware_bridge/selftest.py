"""The self-test: is this artifact, on this device, the one that was exported?

The checks (`firmware_bridge.checks`) run in a process of their own: a model or an SDK that crashes or hangs
is then a failing row instead of the end of the installation, and the memory that is measured is the model's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edge.command import CHECK_FAILED, DONE, MISSING
from edge.errors import InputError

PASS, FAIL, ABSENT = "pass", "FAIL", "missing"
NOT_RUN, NOT_JUDGED, NOT_CONFIGURED = "not run", "not judged", "not configured"
TIMEOUT_S = 300.0
# The child gets our import path word for word, so that it tests the very code that is running.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from firmware_bridge.checks import main; sys.exit(main(sys.argv[2:]))"
)


@dataclass(frozen=True)
class Check:
    """One row.

    Attributes:
        name: what was checked.
        state: pass, FAIL, missing (hardware or SDK), not run, not judged, not configured.
        found: what was seen.
        advice: what to do about it; empty unless FAIL or missing.
    """

    name: str
    state: str
    found: str = ""
    advice: str = ""


@dataclass(frozen=True)
class SelfTest:
    """The whole test.

    Attributes:
        path: the artifact folder.
        artifact: name, version, target, precision, digest; empty where the manifest is unreadable.
        ran_on: device, sdk, version, processor, stand_in; None when nothing was loaded.
        stand_in: the target's own device was replaced by this machine: not verified on device.
        measured: numbers, units in their names.
    """

    path: str
    checks: tuple[Check, ...]
    artifact: dict[str, Any] = field(default_factory=dict)
    ran_on: dict[str, Any] | None = None
    stand_in: bool = False
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """3 when a check failed, else 4 when something is missing, else 0."""
        states = {check.state for check in self.checks}
        return CHECK_FAILED if FAIL in states else MISSING if ABSENT in states else DONE

    @property
    def passed(self) -> bool:
        """No check failed and nothing was missing."""
        return self.exit_code == DONE

    @property
    def reason(self) -> str:
        """The first thing that is wrong, in one line; empty when it passed."""
        wrong = [f"{c.name}: {c.found}" for c in self.checks if c.state in (FAIL, ABSENT)]
        return wrong[0] if wrong else ""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"passed": self.passed, **asdict(self)}

    def with_checks(self, *first: Check) -> SelfTest:
        """The same test with rows put in front."""
        return replace(self, checks=(*first, *self.checks))


def selftest(
    folder: Path, *, device: str | None = None, stand_in: bool = False, timeout_s: float = TIMEOUT_S
) -> SelfTest:
    """Test the artifact in `folder` in a process of its own.

    Args:
        device: as for the runtime; None takes the manifest's.
        stand_in: run on the manifest's stand-in. Never implied.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"there is no artifact folder at {folder}", wanted="the folder that `edgeqc export` wrote"
        )
    # Resolved: the link `active` may move on while we test.
    order = {"folder": str(folder.resolve()), "device": device, "stand_in": stand_in}
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), json.dumps(order)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        advice = "restart the camera and test again; if it hangs again, roll back and report the artifact"
        return _broken(folder, stand_in, f"no answer within {timeout_s:.0f} s", advice)
    try:
        facts = json.loads(done.stdout)
        return SelfTest(**{**facts, "checks": tuple(Check(**check) for check in facts["checks"])})
    except (ValueError, TypeError, KeyError):
        return _broken(
            folder, stand_in, _ending(done), "run `edgeqc doctor`; if it is healthy, report the artifact"
        )


def _ending(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"the runtime crashed ({signal.Signals(-done.returncode).name}) while testing"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"the test ended with status {done.returncode}: {lines[-1] if lines else 'no message'}"


def _broken(folder: Path, stand_in: bool, found: str, advice: str) -> SelfTest:
    return SelfTest(str(folder), (Check("runtime", FAIL, found, advice),), stand_in=stand_in)


def table(test: SelfTest) -> str:
    """For a person at the line: one row per check, then what to do about each that is wrong."""
    facts = test.artifact
    head = (
        f"{facts['name']} {facts['version']} ({facts['target']}, {facts['precision']})"
        if facts
        else test.path
    )
    lines = [f"self-test of {head}"]
    if test.ran_on:
        lines.append("ran on {device}, {sdk} {version}, {processor}".format(**test.ran_on))
    if test.stand_in:
        lines.append("STAND-IN: this machine stood in for the target's device; not verified on device")
    lines += ["", *columns([(check.name, check.state, check.found) for check in test.checks])]
    wrong = [check for check in test.checks if check.state in (FAIL, ABSENT)]
    if wrong:
        lines += ["", "what to do:"]
        lines += [f"  {check.name}: {check.advice or 'report this'}" for check in wrong]
    verdict = {DONE: "healthy", CHECK_FAILED: "NOT HEALTHY", MISSING: "cannot be tested here"}[test.exit_code]
    return "\n".join([*lines, "", verdict + (" (stand-in)" if test.stand_in else "")])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as aligned lines."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
