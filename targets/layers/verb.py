"""`edgeqc parity A B --layers`: the options, the samples, and the files that it writes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from edge.command import CHECK_FAILED, DONE, Outcome
from edge.errors import InputError
from edge.folders import new_folder, refuse_existing, write_json
from edge.samples import Sample, read_samples
from targets.gate import Budget, budget_from, refuse_decide

SAMPLES = 16


def configure_layers(parser: ArgumentParser) -> None:
    """Add the options of `--layers` to `edgeqc parity`."""
    group = parser.add_argument_group("layers: which operation of one grid departs between two runtimes")
    group.add_argument("--layers", action="store_true", help="compare two artifacts operation by operation")
    group.add_argument("--samples", type=int, metavar="N", help=f"of the split ({SAMPLES})")
    group.add_argument(
        "--tolerance", type=float, metavar="STEPS", help="an operation may differ by, on equal inputs (2)"
    )


def refuse_options(arguments: Namespace) -> None:
    """Refuse the options of `--layers` where it is not given: they would change nothing, without a word.

    Raises:
        InputError: one of them is given.
    """
    for option in ("samples", "tolerance"):
        if getattr(arguments, option) is not None:
            raise InputError(
                f"--{option} is an option of --layers; verdicts are compared on the whole split",
                wanted="edgeqc parity ARTIFACT ARTIFACT --layers --data D",
                got=f"--{option} {getattr(arguments, option)} without --layers",
                next_step=f"leave out --{option}, or compare two artifacts with --layers",
            )


def run_layers(arguments: Namespace) -> Outcome:
    """`edgeqc parity A B --layers`; exit code 3 when an operation departs.

    Raises:
        InputError: the artifacts cannot be compared, or an option makes no sense.
    """
    from targets.layers.comparison import TOLERANCE_STEPS, compare_layers
    from targets.layers.known import explain
    from targets.layers.program import open_sides
    from targets.layers.verdict import text
    from targets.report.layers import write_layers

    if arguments.sensitivity is not None:
        raise InputError(
            "--layers writes no report that a ranking could go into",
            wanted="edgeqc parity ARTIFACT ARTIFACT --layers --data D",
            got=f"--sensitivity {arguments.sensitivity}",
            next_step="drop --sensitivity, or --layers",
        )
    if arguments.reference is not None:
        raise InputError(
            "--layers compares two artifacts with each other, without full precision",
            wanted="edgeqc parity ARTIFACT ARTIFACT --layers --data D",
            got=f"--reference {arguments.reference}",
            next_step="drop --reference, or --layers",
        )
    if budget_from(arguments) != Budget():
        raise InputError(
            "--layers judges operations, and a budget is about verdicts",
            wanted="--layers without the options of the budget",
            got="; ".join(budget_from(arguments).limits()),
            next_step="give --tolerance, or leave out --layers",
        )
    count = SAMPLES if arguments.samples is None else arguments.samples
    tolerance = TOLERANCE_STEPS if arguments.tolerance is None else arguments.tolerance
    if count < 1 or not tolerance >= 1:
        raise InputError(
            "--samples and --tolerance leave nothing to judge by",
            wanted="at least 1 sample, and at least 1 step: right kernels round differently by one",
            got=f"{count} samples, {tolerance} steps",
            next_step=f"leave them out: {SAMPLES} samples, {TOLERANCE_STEPS:g} steps",
        )
    if arguments.out is not None:
        refuse_existing(arguments.out)
    samples = read_samples(arguments.data, arguments.split)
    refuse_decide(samples, "a comparison")
    with open_sides(arguments.artifact) as sides:
        result = compare_layers(sides, spread(samples, count), tolerance)
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
