"""Plain ONNX for onnxruntime: float, or Q/DQ on the integer grid."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from targets.graph_lint import onnx_findings, refuse
from targets.lowering import (
    Lowered,
    Network,
    check_precision,
    mixed_facts,
    needed_bytes,
    output_step,
    outputs,
)
from targets.onnx_graph import NEWEST_OPSET, OLDEST_OPSET, onnx_model
from targets.profile import Profile

NAME = "onnx"
BACKEND = "onnx"
PRECISIONS = ("int8", "mixed", "fp16", "fp32")
MODEL = "model.onnx"


def lower(network: Network, precision: str, folder: Path, profile: Profile) -> Lowered:
    """Write `model.onnx`."""
    check_precision(precision, sys.modules[__name__])
    return write_onnx(network, precision, folder, profile)


def write_onnx(
    network: Network,
    precision: str,
    folder: Path,
    profile: Profile,
    stand_in: dict[str, Any] | None = None,
    *,
    shift: bool = False,
) -> Lowered:
    """Write `model.onnx` at the opset that the profile allows, and check the profile's memory.

    `shift` lets all zero points be 0.

    Raises:
        TargetError: the device reads no opset that we write, or has too little memory.
        KnownFaultError: the graph holds a pattern that the target is known to compute wrongly.
    """
    opset = profile.onnx_opset(OLDEST_OPSET, NEWEST_OPSET)
    model = onnx_model(network, precision, opset, shift=shift)
    refuse(onnx_findings(model, profile.target), profile.target)
    payload = model.SerializeToString(deterministic=True)
    needed = needed_bytes(network, precision, len(payload))
    profile.refuse_larger(needed)
    (folder / MODEL).write_bytes(payload)
    return Lowered(
        model=MODEL,
        input=replace(network.input, layout="nchw", file_dtype="float32", encoding="centered_float"),
        outputs=outputs(network),
        stand_in=stand_in,
        facts={"onnx_opset": opset, "needed_bytes": needed, **mixed_facts(network, precision)},
        output_step=output_step(network, precision),
    )
