"""The parts of `test` that `edgeqc data check` finds in another split as well, under another group.

The splits are the data set's own and stay as they are; the table says beside the numbers what they are without
these parts.
"""

from __future__ import annotations

import json
from pathlib import Path

from edge.folders import write_json


def leaked_groups(data: Path, file: Path) -> list[str]:
    """Their groups, sorted; looked for once and kept in `file`."""
    if file.is_file():
        return list(json.loads(file.read_text(encoding="utf-8"))["groups"])
    from quantize.data.check import check_dataset

    leaks = [
        case for finding in check_dataset(data).findings if finding.kind == "leak" for case in finding.cases
    ]
    groups = sorted({sample.group for case in leaks for sample in case.samples if sample.split == "test"})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"pairs": len(leaks), "groups": groups})
    return groups
