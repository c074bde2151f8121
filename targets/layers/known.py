"""What is known already about an operation that departs: the lint's findings for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from targets.graph_lint import Finding, onnx_findings, tflite_findings
from targets.layers.onnx_taps import OnnxFile
from targets.layers.program import Side
from targets.layers.tflite_taps import TfliteFile


def explain(result: dict[str, Any], sides: Sequence[Side]) -> None:
    """Add `known`, the findings for the artifacts at fault, to each operation of `result` that is named."""
    found = {side.name: _findings(side, sides) for side in sides}
    for entry in result["departures"]:
        entry["known"] = _known(entry, [found[name] for name in entry["artifacts"]])
    for hidden in result["hidden"]:
        for suspect in hidden["suspects"]:
            suspect["known"] = _known(suspect, [found[hidden["artifact"]]])


def _findings(side: Side, sides: Sequence[Side]) -> dict[str, list[Finding]]:
    """Layer name -> findings in this side's file.

    OpenVINO's graph is read from the ONNX of the other artifact, where there is one: it is the same.
    """
    files = [side.file] if side.file.layers else [one.file for one in sides]
    by_layer: dict[str, list[Finding]] = {}
    for file in files:
        findings = []
        if isinstance(file, TfliteFile) and file is side.file:
            findings = tflite_findings(file.model)
        if isinstance(file, OnnxFile):
            findings = onnx_findings(file.model, side.artifact.target)
        names = {layer.label: layer.name for layer in file.layers}
        for finding in findings:
            by_layer.setdefault(names[finding.operation], []).append(finding)
    return by_layer


def _known(entry: Mapping[str, Any], found: Sequence[Mapping[str, list[Finding]]]) -> list[dict[str, Any]]:
    findings = (finding for by_layer in found for finding in by_layer.get(entry["name"], ()))
    return [asdict(finding) for finding in dict.fromkeys(findings)]
