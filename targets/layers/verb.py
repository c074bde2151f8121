"""`edgeqc parity A B --layers`: the options, the table, and the files that it writes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from edge.command import CHECK_FAILED, DONE, Outcome
from edge.errors import InputError
from edge.folders import new_folder, refuse_existing, write_json
from edge.samples import Sample, read_samples
from targets.gate import refuse_decide
from targets.report.text import STAND_IN, columns, where

SAMPLES = 16
SHOWN = 12


def configure_layers(parser: ArgumentParser) -> None:
    """Add the options of `--layers` to `edgeqc parity`."""
    group = parser.add_argument_group("layers: which operation of one grid departs between two runtimes")
    group.add_argument("--layers", action="store_true", help="compare two artifacts operation by operation")
    group.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help=f"of the split ({SAMPLES})")
    group.add_argument(
        "--tolerance", type=float, metavar="STEPS", help="an operation may differ by, on equal inputs (2)"
    )


def run_layers(arguments: Namespace) -> Outcome:
    """`edgeqc parity A B --layers`; exit code 3 when an operation departs.

    Raises:
        InputError: the artifacts cannot be compared, or an option makes no sense.
    """
    from targets.layers.comparison import TOLERANCE_STEPS, compare_layers
    from targets.layers.known import explain
    from targets.layers.program import open_sides
    from targets.report.layers import write_layers

    if arguments.reference is not None:
        raise InputError(
            "--layers compares two artifacts with each other, without full precision",
            wanted="edgeqc parity ARTIFACT ARTIFACT --layers --data D",
            got=f"--reference {arguments.reference}",
            next_step="drop --reference, or --layers",
        )
    tolerance = TOLERANCE_STEPS if arguments.tolerance is None else arguments.tolerance
    if arguments.samples < 1 or not tolerance >= 1:
        raise InputError(
            "--samples and --tolerance leave nothing to judge by",
            wanted="at least 1 sample, and at least 1 step: right kernels round differently by one",
            got=f"{arguments.samples} samples, {tolerance} steps",
        )
    if arguments.out is not None:
        refuse_existing(arguments.out)
    samples = read_samples(arguments.data, arguments.split)
    refuse_decide(samples, "a comparison")
    with open_sides(arguments.artifact) as sides:
        result = compare_layers(sides, spread(samples, arguments.samples), tolerance)
        explain(result, sides)
    result["split"] = arguments.split
    lines = [text(result)]
    if arguments.out is not None:
        with new_folder(arguments.out) as folder:
            write_json(folder / "layers.json", result)
            write_layers(folder / "layers.html", result, data=arguments.data.name)
        lines.append(f"report: {arguments.out / 'layers.html'}")
    return Outcome("\n".join(lines), result, DONE if result["passed"] else CHECK_FAILED)


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples, half of them defective as far as there are, spread evenly over the split."""
    bad = [sample for sample in samples if sample.defective]
    good = [sample for sample in samples if not sample.defective]
    wanted = min(len(bad), max(count // 2, count - len(good)))
    return [*_evenly(bad, wanted), *_evenly(good, min(len(good), count - wanted))]


def _evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    return [samples[index * len(samples) // count] for index in range(count)]


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
