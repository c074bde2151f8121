"""OpenVINO IR: uint8 frames in, the conversion to (p - 128) / 128 inside the graph.

OpenVINO's CPU plugin runs an int8 convolution, the sum that reads it and the rounding behind that as one kernel, and
leaves out the rounding between the two: a quarter of a sum's values are then one step off what the grid says. A clamp
that never clamps keeps it from doing so, at next to no cost (docs/quantization.md, tests/integration/test_tie_free.py).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
from targets.openvino_ptq import quantized_by_nncf
from targets.profile import Profile

NAME = "openvino"
BACKEND = "openvino"
PRECISIONS = ("int8", "nncf", "mixed", "fp16", "fp32")
MODEL = "model.xml"
# Beyond every value of a tensor of 256 steps, so that OpenVINO cannot make one clamp of it and the tensor's own range.
_NO_CLAMP_STEPS = 1024


def lower(network: Network, precision: str, folder: Path, profile: Profile) -> Lowered:
    """Write `model.xml` and `model.bin`.

    nncf is int8 by OpenVINO's own quantizer (`targets.openvino_ptq`). fp16 stores float16 weights; they are computed in
    what the runtime is told, which is f32 unless the manifest says otherwise.

    Raises:
        KnownFaultError: the graph holds a pattern that OpenVINO is known to compute wrongly.
    """
    from edge.backend import find_backend

    ov = find_backend("openvino").sdk()  # imports it without its telemetry

    check_precision(precision, sys.modules[__name__])
    graph = onnx_model(network, precision if precision in ON_GRID else "fp32")
    refuse(onnx_findings(graph, NAME), NAME)
    keep_sums_apart(graph)
    model = ov.Core().read_model(graph.SerializeToString())
    if precision == "nncf":
        model = quantized_by_nncf(model, network, saturates=profile.int8_saturates)
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


def keep_sums_apart(graph: Any) -> None:
    """Put a clamp that never clamps before each sum of a Q/DQ graph that reads a convolution, in place."""
    from onnx import helper, numpy_helper

    makers = {name: node for node in graph.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    nodes = []
    for node in graph.graph.node:
        for index, read in enumerate(node.input) if node.op_type == "Add" else ():
            dequantize = makers.get(read)
            if dequantize is None or dequantize.op_type != "DequantizeLinear" or not _convolved(read, makers):
                continue
            scale = numpy_helper.to_array(constants[dequantize.input[1]])
            apart, ends = f"{read}/before/{node.name}", (-_NO_CLAMP_STEPS * scale, _NO_CLAMP_STEPS * scale)
            names = [f"{apart}/{end}" for end in ("low", "high")]
            graph.graph.initializer.extend(map(numpy_helper.from_array, ends, names))
            nodes.append(helper.make_node("Clip", [read, *names], [apart], name=apart))
            node.input[index] = apart
        nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _convolved(tensor: str, makers: Mapping[str, Any]) -> bool:
    """Whether a convolution made `tensor`, but for its clamp and its place on the grid."""
    node = makers.get(tensor)
    while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear", "Clip", "Relu"):
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Conv"


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
