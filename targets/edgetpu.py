"""int8 TFLite for the Coral Edge TPU: int8 or nothing, and never half of it on the CPU by surprise."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from targets import edgetpu_compiler, old_interpreter
from targets.edgetpu_lint import Report, differences, lint_file
from targets.graph_lint import refuse, tflite_findings
from targets.lowering import Lowered, Network, check_precision, needed_bytes, outputs
from targets.profile import Profile
from targets.tflite_file import append_metadata, check_operations, read
from targets.tflite_writer import tflite

NAME = "edgetpu"
BACKEND = "litert"
PRECISIONS = ("int8",)
STAND_IN = {"backend": "litert", "device": "cpu"}
MODEL = "model.tflite"


def lower(network: Network, precision: str, folder: Path, profile: Profile) -> Lowered:
    """Write `model.tflite` (int8 in and out, NHWC) and, where the compiler is installed, the compiled file.

    What the lint predicts is in the facts, and beside it, where there is a compiler, what its log says otherwise.

    Raises:
        UnsupportedOpError: the network holds something that the Edge TPU does not run.
        KnownFaultError: the file holds a pattern that TFLite's kernels are known to compute wrongly.
        CompilerError: the Edge TPU compiler is there and refuses the file.
    """
    check_precision(precision, sys.modules[__name__])
    path = folder / MODEL
    payload = tflite(network.grid.folded, ["input"], ["defect", "mask"])
    refuse(tflite_findings(read(payload)), NAME)
    path.write_bytes(payload)
    facts: dict[str, Any] = {"operations": check_operations(path)}
    needed = needed_bytes(network, precision, path.stat().st_size)
    profile.refuse_larger(needed)
    facts["needed_bytes"] = needed
    facts["old_interpreter"] = (old_interpreter.run(path) or {}).get("version")
    report = lint_file(path)
    facts["lint"] = report.as_dict()
    model, facts["compiler"] = _compile(path, report)
    about = {"name": network.name, "precision": precision, "input_encoding": "uint8 ^ 0x80", **network.facts}
    for file in {path, folder / model}:
        append_metadata(file, about)
    stand_in: dict[str, Any] = dict(STAND_IN)
    if model != MODEL:
        stand_in["model"] = MODEL  # a compiled file does not run on the CPU
    return Lowered(
        model=model,
        input=replace(network.input, layout="nhwc", file_dtype="int8", encoding="xor80"),
        outputs=outputs(network),
        stand_in=stand_in,
        facts=facts,
        objections=_objections(report, facts["compiler"]),
        output_step=network.grid.output_scales()[0],
    )


def _objections(report: Report, compiler: Mapping[str, Any]) -> tuple[str, ...]:
    """Why this would not all run on the Edge TPU: by the compiler's log where it ran, else by the lint."""
    if compiler["compiled"]:
        witness, on_cpu = (
            "leaves",
            {name: sum(counts.values()) for name, counts in compiler["on_cpu"].items()},
        )
    else:
        witness, on_cpu = "is predicted to leave", report.on_cpu
    kinds = ", ".join(f"{count} {name}" for name, count in on_cpu.items())
    return (
        (f"the Edge TPU compiler {witness} to the CPU: {kinds} (--allow-cpu accepts it)",) if on_cpu else ()
    )


def _compile(path: Path, report: Report) -> tuple[str, dict[str, Any]]:
    program = edgetpu_compiler.find()
    if program is None:
        return path.name, {
            "compiled": False,
            "note": "edgetpu_compiler is not installed here; on x86-64 Linux: https://coral.ai/docs/edgetpu/compiler",
        }
    compiled, log = edgetpu_compiler.compile_model(path, program)
    return compiled.name, {
        "compiled": True,
        "version": log.version,
        "on_edgetpu": log.mapped,
        "on_cpu": log.unmapped,
        "differences": differences(report, log),
    }
