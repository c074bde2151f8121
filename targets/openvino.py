"""OpenVINO IR: uint8 frames in, the conversion to (p - 128) / 128 inside the graph."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from targets.graph_lint import onnx_findings, refuse
from targets.lowering import (
    ON_GRID,
    Lowered,
    Network,
    check_precision,
    mixed_facts,
    needed_bytes,
    output_step,
    outputs,
)
from targets.onnx_graph import INPUT, onnx_model
from targets.profile import Profile

NAME = "openvino"
BACKEND = "openvino"
PRECISIONS = ("int8", "mixed", "fp16", "fp32")
MODEL = "model.xml"


def lower(network: Network, precision: str, folder: Path, profile: Profile) -> Lowered:
    """Write `model.xml` and `model.bin`.

    fp16 stores float16 weights; they are computed in what the runtime is told, which is f32 unless the
    manifest says otherwise.

    Raises:
        KnownFaultError: the graph holds a pattern that OpenVINO is known to compute wrongly.
    """
    from edge.backend import find_backend

    ov = find_backend("openvino").sdk()  # imports it without its telemetry

    check_precision(precision, sys.modules[__name__])
    graph = onnx_model(network, precision if precision in ON_GRID else "fp32")
    refuse(onnx_findings(graph, NAME), NAME)
    model = ov.Core().read_model(graph.SerializeToString())
    model = _take_frames(ov, model)
    model.set_friendly_name(network.name)
    for key, value in _model_info(network).items():
        model.set_rt_info(value, ["model_info", key])
    # Compressing the Q/DQ scales of the grid would move every tensor on it.
    ov.save_model(model, folder / MODEL, compress_to_fp16=precision == "fp16")
    needed = needed_bytes(network, precision, (folder / MODEL).with_suffix(".bin").stat().st_size)
    profile.refuse_larger(needed)
    return Lowered(
        model=MODEL,
        input=replace(network.input, layout="nchw", file_dtype="uint8", encoding="identity"),
        outputs=outputs(network),
        facts={"openvino": ov.get_version(), "needed_bytes": needed, **mixed_facts(network, precision)},
        output_step=output_step(network, precision),
    )


def _take_frames(ov: Any, model: Any) -> Any:
    """Put uint8 -> float32 -> (p - 128) / 128 before the network."""
    steps = ov.preprocess.PrePostProcessor(model)
    source = steps.input(INPUT)
    source.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NCHW"))
    source.model().set_layout(ov.Layout("NCHW"))
    source.preprocess().convert_element_type(ov.Type.f32).mean(128.0).scale(128.0)
    return steps.build()


def _model_info(network: Network) -> dict[str, str]:
    """Names as OpenVINO's Model API reads them; mean and scale are in the graph already."""
    return {
        "model_type": "edgeqc",
        "model_name": network.name,
        "resize_type": "standard",
        "reverse_input_channels": "NO",
        "mean_values": "",
        "scale_values": "",
        "embedded_processing": "False",  # the reader still has to resize
        **network.facts,
    }
