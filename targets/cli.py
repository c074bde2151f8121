"""The verbs `export`, `parity` and `demo`. Light at import: what a verb needs is imported when it runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from edge.command import CHECK_FAILED, DONE, Command, Outcome
from targets.gate import budget_from, configure_budget


def _configure_export(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="RUN folder that `edgeqc train` wrote")
    parser.add_argument("--target", required=True, help="openvino, edgetpu, tensorrt or onnx")
    parser.add_argument(
        "--data", type=Path, required=True, help="data set; calibrates on train, gates on val"
    )
    parser.add_argument("--out", type=Path, required=True, help="artifact folder to write")
    parser.add_argument("--profile", help="device profile; the target's default when not given")
    parser.add_argument("--precision", action="append", help="try only this precision (repeat for an order)")
    parser.add_argument("--calibration", type=int, default=None, metavar="N", help="calibration samples")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of calibration samples")
    configure_budget(parser)


def _export(arguments: Namespace) -> Outcome:
    from edge.folders import refuse_existing
    from quantize.run import open_run
    from targets import calibration, find_target
    from targets.export import export
    from targets.profile import load_profile

    refuse_existing(arguments.out)
    run = open_run(arguments.run)
    target = find_target(arguments.target)
    profile = load_profile(arguments.profile, target.NAME)
    exported = export(
        run,
        target,
        arguments.data,
        arguments.out,
        profile=profile,
        budget=budget_from(arguments),
        precisions=arguments.precision,
        calibration_count=calibration.DEFAULT_COUNT
        if arguments.calibration is None
        else arguments.calibration,
        seed=arguments.seed,
    )
    lines = []
    for candidate in exported.candidates:
        row = candidate.row
        verdict = "passed" if not candidate.reasons else "missed: " + "; ".join(candidate.reasons)
        where = "stand-in, not verified on device" if row["stand_in"] else row["ran_on"]["device"]
        lines.append(
            f"{target.NAME} {candidate.precision} on {where}: {row['flips']} flips of {row['n']} on val, {verdict}"
        )
    artifact = exported.artifact
    if exported.passed:
        lines.append(f"artifact: {artifact.path} ({artifact.precision})")
    else:
        lines.append(f"no candidate kept the budget; the last one is kept as {artifact.path}")
    manifest = artifact.manifest
    data = {
        "artifact": str(artifact.path),
        "passed": exported.passed,
        "precision": artifact.precision,
        "target": target.NAME,
        "profile": profile.name,
        "gate": manifest["gate"],
        "candidates": [
            {"precision": c.precision, "passed": not c.reasons, "reasons": c.reasons, "row": c.row}
            for c in exported.candidates
        ],
    }
    return Outcome("\n".join(lines), data, DONE if exported.passed else CHECK_FAILED)


def _configure_parity(parser: ArgumentParser) -> None:
    from targets.parity import configure_parity

    configure_parity(parser)


def _parity(arguments: Namespace) -> Outcome:
    from targets.parity import run_parity

    return run_parity(arguments)


def _configure_demo(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything it makes")
    parser.add_argument("--seed", type=int, default=0)


def _demo(arguments: Namespace) -> Outcome:
    import contextlib
    import sys

    from targets.demo import demo

    # With --json on standard output the story is told on standard error.
    with contextlib.redirect_stdout(sys.stderr if arguments.json == "-" else sys.stdout):
        return demo(arguments.out, arguments.seed)


export = Command("lower a RUN for a device, and gate it on verdicts", _configure_export, _export)
parity = Command("compare artifacts with full precision, verdict by verdict", _configure_parity, _parity)
demo = Command("the whole way on synthetic surfaces, from training to self-test", _configure_demo, _demo)
