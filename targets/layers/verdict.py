"""What a comparison by layers found, in a table and in sentences: for a terminal and for `layers.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from targets.report.text import STAND_IN, columns, where

SHOWN = 12


def text(result: Mapping[str, Any]) -> str:
    """The result for a terminal: the layers that depart, or those farthest off, and the verdict."""
    names = [artifact["name"] for artifact in result["artifacts"]]
    lines = [
        f"{artifact['name']}: {where(artifact['ran_on'])}"
        + (f" ({STAND_IN})" if artifact["stand_in"] else "")
        for artifact in result["artifacts"]
    ]
    lines.append(
        f"{result['n']} samples, {result['tiles']} tiles; judged by {result['replay']}, on equal inputs, in steps of"
        f" each tensor; up to {result['tolerance_steps']:g} is rounding"
    )
    if result["instruction_set"]:
        lines.append(f"processor instructions limited to {result['instruction_set']}")
    shown = [row for row in result["layers"] if row["departs"]][:SHOWN]
    title = "departing"
    if not shown:
        title = "farthest off"
        far = sorted(result["layers"], key=lambda row: -max(e["mean"] for e in row["error"]))[:5]
        shown = [row for row in result["layers"] if row in far]
    cells = [(title, "operation", "reads", *(f"{name}: max, mean" for name in names), "apart in a chain")]
    cells += [
        (
            row["label"],
            row["operation"],
            " ".join(row["inputs"]),
            *(f"{error['max']:.1f}, {error['mean']:.3f}" for error in row["error"]),
            f"{row['drift']['max']:.0f}",
        )
        for row in shown
    ]
    more = sum(row["departs"] for row in result["layers"]) - len(shown)
    lines += ["", columns(cells), *([f"and {more} more depart"] if more > 0 else []), ""]
    return "\n".join([*lines, *verdict(result)])


def verdict(result: Mapping[str, Any]) -> list[str]:
    """What follows from the numbers, in sentences."""
    lines = []
    names = [artifact["name"] for artifact in result["artifacts"]]
    first = result["first"]
    if first is not None:
        lines.append(f"{first['label']} ({first['operation']}) is the first to depart: {_how(first, names)}.")
        lines += _known(first)
    for hidden in result["hidden"]:
        far = max(hidden["shift"].values())
        lines.append(
            f"{hidden['artifact']} answers wrongly by {far:.0f} steps as it ships, and rightly with every tensor"
            f" tapped: the fault lies in operations that run as one."
        )
        suspects = ", ".join(f"{one['label']} ({one['operation']})" for one in hidden["suspects"])
        lines.append(f"At fault: {suspects or 'could not be narrowed down'}.")
        if hidden["hidden_by"]:
            lines.append(f"A tap at any one of these alone hides it: {', '.join(hidden['hidden_by'])}.")
        for suspect in hidden["suspects"]:
            lines += _known(suspect)
    made = [entry for entry in result["departures"] if entry["only_tapped"]]
    if made:
        lines.append(
            f"{made[0]['label']} ({made[0]['operation']}) departs, but only while tapped: {_how(made[0], names)}, and"
            " without taps the answers agree. A second reader of a tensor there would bring the fault out."
        )
        lines += _known(made[0])
    if not lines:
        lines.append("no operation departs")
    return lines


def _how(entry: Mapping[str, Any], names: Sequence[str]) -> str:
    if entry["steps"] is not None:
        steps = " and ".join(f"{step:.6g} in {name}" for step, name in zip(entry["steps"], names))
        return f"the files give its tensor different steps, {steps}"
    parts = [
        f"{name} is up to {error['max']:.1f} steps off on equal inputs ({error['mean']:.2f} on average)"
        for name, error in zip(names, entry["error"])
        if name in entry["artifacts"]
    ]
    return " and ".join(parts)


def _known(entry: Mapping[str, Any]) -> list[str]:
    return [
        f"  known: {found['pattern']}. {found['reason']} Remedy: {found['remedy']}"
        for found in entry["known"]
    ]
