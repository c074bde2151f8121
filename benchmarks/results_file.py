"""`benchmarks/results/NAME.json`: what a performance claim rests on. Tables are generated from it, never typed."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from edge.backend import processor_family
from edge.folders import write_json

RESULTS = Path(__file__).parent / "results"
ROOT = RESULTS.parent.parent


def row(
    id: str,
    what: str,
    value: Any,
    unit: str = "",
    bar: Any = None,
    passed: bool | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One measured line. `passed` is True, False, or None for *not run* (or nothing to pass)."""
    return {"id": id, "what": what, "value": value, "unit": unit, "bar": bar, "passed": passed, "note": note}


def value_text(row: dict[str, Any]) -> str:
    """The value as people read it: three digits that count, the unit, `not run` where there is none."""
    value = row["value"]
    if value is None:
        return "not run"
    text = f"{value:.3g}" if isinstance(value, float) and abs(value) >= 1 else (
        f"{value:.3f}" if isinstance(value, float) else str(value)
    )  # fmt: skip
    return f"{text} {row['unit']}".strip()


def commit() -> str:
    """The commit that is checked out, marked `-dirty` where files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return found or "not a git checkout"


def pretrained(training: dict[str, Any]) -> str:
    """Where the encoder came from, as `run.json` says it, without the path on this machine."""
    said = str(training.get("pretrained", ""))
    return said.replace(str(Path(said.split()[-1]).parent) + "/", "") if "/" in said else said


def write(name: str, command: str, seeds: list[int], rows: list[dict[str, Any]]) -> Path:
    """Write the file with the commit, date and machine it was measured on."""
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "command": command,
            "commit": commit(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": {
                "processor": processor_family(),
                "cores": os.cpu_count(),
                "system": platform.system(),
                "python": platform.python_version(),
            },
            "seeds": seeds,
            "rows": rows,
        },
    )
    return path
