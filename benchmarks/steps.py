"""Verbs whose answers are kept: a step that was taken is not taken again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks import verbs


def edgeqc(work: Path, label: str, *words: object) -> tuple[int, Any]:
    """Run one verb in a process of its own, as a user does; return its exit code and its JSON."""
    output = work / "json" / f"{label}.json"
    if output.is_file():
        record = json.loads(output.read_text())
        return record["exit_code"], record["result"]
    start = time.monotonic()
    code = verbs.edgeqc(*words, "--json", str(output) + ".new")
    if code in (1, 2, 4):
        raise SystemExit(f"{label} ended with exit code {code}")
    result = json.loads(Path(str(output) + ".new").read_text())
    record = {"exit_code": code, "elapsed_s": time.monotonic() - start, "result": result}
    output.write_text(json.dumps(record))
    Path(str(output) + ".new").unlink()
    return code, result


def elapsed_s(work: Path, label: str) -> float:
    """Wall-clock seconds that the step took when it ran."""
    return float(json.loads((work / "json" / f"{label}.json").read_text())["elapsed_s"])
