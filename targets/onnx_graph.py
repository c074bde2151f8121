"""One ONNX graph for three targets: float, float16, or with explicit Q/DQ on the integer grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.errors import UnsupportedOpError
from targets.lowering import ON_GRID, Network
from targets.onnx_writer import NEWEST_OPSET, OLDEST_OPSET, write_graph

if TYPE_CHECKING:
    import onnx

__all__ = ["INPUT", "NEWEST_OPSET", "OLDEST_OPSET", "OUTPUTS", "check", "onnx_model"]

INPUT = "input"
OUTPUTS = ("defect", "mask")
# Operations that OpenVINO, onnxruntime and TensorRT all run for our networks.
ALLOWED = {
    "Add", "Cast", "Clip", "Conv", "DequantizeLinear", "MaxPool", "Mul", "Pad", "QuantizeLinear", "ReduceMean",
    "Relu", "Reshape", "Resize",
}  # fmt: skip


def onnx_model(
    network: Network, precision: str, opset: int = NEWEST_OPSET, *, shift: bool = False
) -> onnx.ModelProto:
    """The network as ONNX, made once for each precision and opset.

    Input `input` float32 [1, C, H, W] in (p - 128) / 128; outputs `defect` and `mask`, float32 logits.

    Args:
        precision: `int8` (Q/DQ), `mixed` (the same but for some float layers), `fp16` (float16 inside) or `fp32`.
        shift: with all zero points 0, as TensorRT wants it, see `targets.onnx_writer`.

    Raises:
        UnsupportedOpError: the network holds an operation that not every target runs.
    """
    import onnx

    key = ("onnx", precision, opset, shift)
    if key not in network.made:
        module = network.on_grid(precision).folded if precision in ON_GRID else network.program
        made = write_graph(module, opset, [INPUT], list(OUTPUTS), half=precision == "fp16", shift=shift)
        check(made, opset, any_zero_point=not shift)
        made.graph.name = network.name
        made.producer_name = "edgeqc"
        facts = {"name": network.name, "precision": precision, "input_encoding": "(p - 128) / 128"}
        onnx.helper.set_model_props(made, {**facts, **network.facts})
        network.made[key] = made
    model = onnx.ModelProto()
    model.CopyFrom(network.made[key])
    return model


def check(model: onnx.ModelProto, opset: int, *, any_zero_point: bool = False) -> None:
    """Refuse a graph that is not what all targets take.

    Raises:
        UnsupportedOpError: another opset, an operation outside `ALLOWED`, no zero point, or one other than 0 unless
            `any_zero_point`.
    """
    import onnx

    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if versions != {"ai.onnx": opset}:
        raise UnsupportedOpError("the ONNX file has another opset", wanted=f"ai.onnx {opset}", got=versions)
    strange = sorted({node.op_type for node in model.graph.node} - ALLOWED)
    if strange:
        raise UnsupportedOpError(
            "the network holds operations that not every target runs", wanted=sorted(ALLOWED), got=strange
        )
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants.get(node.input[2]) if len(node.input) == 3 else None
            if zero_point is None or (onnx.numpy_helper.to_array(zero_point).any() and not any_zero_point):
                raise UnsupportedOpError(
                    f"{node.op_type} {node.name} has a zero point that is not 0",
                    wanted="the symmetric grid, the only one that TensorRT reads",
                )
