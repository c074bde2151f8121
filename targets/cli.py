"""The verbs `export`, `lint`, `sensitivity`, `parity` and `demo`.

Light at import: what a verb needs is imported when it runs.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.command import CHECK_FAILED, DONE, Command, Outcome
from targets.gate import budget_from, configure_budget

if TYPE_CHECKING:
    from targets.edgetpu_lint import Report


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
    parser.add_argument(
        "--all-candidates",
        action="store_true",
        help="measure what comes after the first that passes, too; the artifact is the same",
    )
    parser.add_argument(
        "--allow-cpu",
        action="store_true",
        help="edgetpu: accept operations that would run on the CPU (see `edgeqc lint`)",
    )
    configure_budget(parser)


def _export(arguments: Namespace) -> Outcome:
    from edge.folders import refuse_existing
    from quantize.run import open_run
    from targets import calibration, find_target
    from targets.export import export
    from targets.profile import load_profile
    from targets.tried import fallback, grid_name, tried

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
        allow_cpu=arguments.allow_cpu,
        all_candidates=arguments.all_candidates,
    )
    lines = []
    for candidate in exported.candidates:
        row = candidate.row
        verdict = "passed" if not candidate.reasons else "missed: " + "; ".join(candidate.reasons)
        where = "stand-in, not verified on device" if row["stand_in"] else row["ran_on"]["device"]
        grid = grid_name(candidate.ranges, candidate.widening)
        lines.append(
            f"{target.NAME} {candidate.precision}{grid} on {where}:"
            f" {row['flips']} flips of {row['n']} on val, {verdict}"
        )
    artifact = exported.artifact
    if told := fallback(tried(map(asdict, exported.candidates))):
        lines.append(f"FALLBACK: {told}")
    if exported.passed:
        lines.append(f"artifact: {artifact.path} ({artifact.precision})")
    else:
        lines.append(f"no candidate kept the budget; the nearest is kept as {artifact.path}")
    if not exported.order_measured:
        lines.append(
            f"note: in which order precisions are tried is unmeasured on {profile.title};"
            " give `p50_ms` of `edgeqc bench` on it in a profile"
        )
    manifest = artifact.manifest
    lines += _edgetpu_notes(manifest["lowering"])
    data = {
        "artifact": str(artifact.path),
        "passed": exported.passed,
        "precision": artifact.precision,
        "target": target.NAME,
        "profile": profile.name,
        "gate": manifest["gate"],
        "order_measured": exported.order_measured,
        "candidates": [
            {
                "precision": c.precision,
                "ranges": c.ranges,
                "widening": c.widening,
                "passed": not c.reasons,
                "reasons": c.reasons,
                "row": c.row,
            }
            for c in exported.candidates
        ],
    }
    return Outcome("\n".join(lines), data, DONE if exported.passed else CHECK_FAILED)


def _edgetpu_notes(lowering: Mapping[str, Any]) -> list[str]:
    """What a person should know of an Edge TPU export although it passed; empty for other targets."""
    unknown = (lowering.get("lint") or {}).get("unknown") or {}
    lines = (
        [f"note: no evidence of what the Edge TPU compiler makes of {', '.join(unknown)}"] if unknown else []
    )
    found = (lowering.get("compiler") or {}).get("differences") or []
    return lines + [f"note: the compiler's log is not as predicted: {difference}" for difference in found]


def _configure_lint(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="int8 .tflite that is not compiled yet")


def _lint(arguments: Namespace) -> Outcome:
    from targets import edgetpu_compiler
    from targets.edgetpu_lint import lint_file

    report = lint_file(arguments.file)
    text, data, failed = report.text(arguments.file.name), report.as_dict(), bool(report.on_cpu)
    program = edgetpu_compiler.find()
    if program is not None:
        data["compiler"], said = _ask_compiler(arguments.file, program, report)
        text += f"\n\n{said}"
        failed = failed or bool(data["compiler"].get("error") or data["compiler"].get("on_cpu"))
    return Outcome(text, data, CHECK_FAILED if failed else DONE)


def _ask_compiler(file: Path, program: str, report: Report) -> tuple[dict[str, Any], str]:
    """Compile a copy, and lay the log beside the prediction: for JSON, and for people."""
    import shutil
    from tempfile import TemporaryDirectory

    from targets import edgetpu_compiler
    from targets.edgetpu_lint import differences
    from targets.errors import CompilerError

    with TemporaryDirectory() as folder:
        copy = Path(folder) / "model.tflite"
        shutil.copyfile(file, copy)
        try:
            _, log = edgetpu_compiler.compile_model(copy, program)
        except CompilerError as exc:  # its refusal is the result
            return {"error": str(exc)}, f"the compiler that is installed here does not take it: {exc.got}"
    found = differences(report, log)
    facts = {
        "version": log.version,
        "on_edgetpu": log.mapped,
        "on_cpu": log.unmapped,
        "differences": found,
    }
    said = [f"compiler {log.version}, installed here: {'otherwise' if found else 'as predicted'}"]
    return facts, "\n".join([*said, *(f"  {difference}" for difference in found)])


def _configure_sensitivity(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="RUN folder that `edgeqc train` wrote")
    parser.add_argument("--data", type=Path, required=True, help="data set; only its split train is used")
    parser.add_argument(
        "--images",
        type=int,
        default=32,
        metavar="N",
        help="photographs to measure on, half of them defective (32)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of photographs")
    parser.add_argument("--out", type=Path, help="new folder for sensitivity.json and sensitivity.svg")


def _sensitivity(arguments: Namespace) -> Outcome:
    from edge.folders import new_folder, refuse_existing, write_json
    from quantize.run import open_run
    from targets.report.sensitivity import NUMBERS, PICTURE, bars, table
    from targets.sensitivity import as_data, rank_layers

    if arguments.out is not None:
        refuse_existing(arguments.out)
    run = open_run(arguments.run)
    ranking = rank_layers(run, arguments.data, images=arguments.images, seed=arguments.seed)
    data = as_data(ranking, run)
    text = table(ranking.found, ranking.plan)
    if arguments.out is not None:
        with new_folder(arguments.out) as folder:
            write_json(folder / NUMBERS, data)
            (folder / PICTURE).write_bytes(bars(ranking.found, ranking.plan))
        text += f"\npicture: {arguments.out / PICTURE}"
    return Outcome(text, data)


def _configure_parity(parser: ArgumentParser) -> None:
    from targets.layers.verb import configure_layers
    from targets.parity import configure_parity

    configure_parity(parser)
    configure_layers(parser)


def _parity(arguments: Namespace) -> Outcome:
    from targets.layers.verb import refuse_options, run_layers
    from targets.parity import run_parity

    if arguments.layers:
        return run_layers(arguments)
    refuse_options(arguments)
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
lint = Command("predict which operations of a TFLite file the Edge TPU runs", _configure_lint, _lint)
sensitivity = Command("rank layers by what quantizing each alone does", _configure_sensitivity, _sensitivity)
parity = Command(
    "compare artifacts with full precision, verdict by verdict, or with each other, layer by layer",
    _configure_parity,
    _parity,
)
demo = Command("the whole way on synthetic surfaces, from training to self-test", _configure_demo, _demo)
