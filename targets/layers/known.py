"""What is known already about an operation that departs: the lint's findings for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from targets.graph_lint import Finding, onnx_findings, tflite_findings
from targets.layers.onnx_taps import OnnxFile
from targets.layers.program import Side
from targets.layers.tflite_taps import TfliteFile


def explain(result: dict[str, Any], sides: Sequence[Side]) -> None:
    """Add `known`, a list of findings, to each operation of `result` that is named.

    OpenVINO's graph is read from the ONNX of the other artifact, where there is one: it is the same.
    """
    found: list[Finding] = []
    for side in sides:
        if isinstance(side.file, TfliteFile):
            found += tflite_findings(side.file.model)
        if isinstance(side.file, OnnxFile):
            for target in {one.artifact.target for one in sides}:
                found += onnx_findings(side.file.model, target)
    named = [*result["departures"], *(one for hidden in result["hidden"] for one in hidden["suspects"])]
    for entry in named:
        entry["known"] = [asdict(finding) for finding in found if finding.operation == entry["name"]]
