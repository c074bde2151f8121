"""One ONNX graph for three targets: float, float16, or with explicit Q/DQ on the integer grid."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from quantize.quiet import quiet
from targets.errors import UnsupportedOpError
from targets.lowering import Network

if TYPE_CHECKING:
    import onnx
    from torch import nn

# The oldest opset that torch's exporter writes; nothing later has anything for networks like these.
OPSET = 18
INPUT = "input"
OUTPUTS = ("defect", "mask")
# Operations that OpenVINO, onnxruntime and TensorRT all run for our networks.
ALLOWED = {
    "Add", "Cast", "Clip", "Conv", "DequantizeLinear", "MaxPool", "QuantizeLinear", "ReduceMean", "Relu",
    "Reshape", "Resize",
}  # fmt: skip


def onnx_model(network: Network, precision: str, opset: int = OPSET) -> onnx.ModelProto:
    """The network as ONNX, made once for each precision and opset.

    Input `input` float32 [1, C, H, W] in (p - 128) / 128; outputs `defect` and `mask`, float32 logits.

    Args:
        precision: `int8` (Q/DQ, all zero points 0), `fp16` (float16 inside) or `fp32`.

    Raises:
        UnsupportedOpError: the exporter made an operation that not every target runs.
    """
    key = ("onnx", precision, opset)
    if key not in network.made:
        network.made[key] = _export(network, precision, opset)
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(network.made[key])
    return model


def _export(network: Network, precision: str, opset: int) -> onnx.ModelProto:
    import torch

    module: Any = network.folded
    if precision == "int8":
        module = network.grid.folded
    elif precision == "fp16":
        module = _half(module)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (torch.zeros(1, *network.shape),),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    check(model, opset)
    _describe(model, network, precision)
    return model


def _half(model: nn.Module) -> nn.Module:
    """float32 in and out, float16 in between: what a strongly typed TensorRT network reads."""
    import torch

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(model).half()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(output.float() for output in self.network(x.half()))

    return Half().eval()


def check(model: onnx.ModelProto, opset: int) -> None:
    """Refuse a graph that is not what all targets take.

    Raises:
        UnsupportedOpError: another opset, an operation outside `ALLOWED`, a zero point other than 0.
    """
    import onnx

    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if versions != {"ai.onnx": opset}:
        raise UnsupportedOpError(
            "the ONNX exporter did not obey the opset", wanted=f"ai.onnx {opset}", got=versions
        )
    strange = sorted({node.op_type for node in model.graph.node} - ALLOWED)
    if strange:
        raise UnsupportedOpError(
            "the network holds operations that not every target runs", wanted=sorted(ALLOWED), got=strange
        )
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) == 3:
            zero_point = constants.get(node.input[2])
            if zero_point is None or onnx.numpy_helper.to_array(zero_point).any():
                raise UnsupportedOpError(
                    f"{node.op_type} {node.name} has a zero point that is not 0",
                    wanted="the symmetric grid, the only one that TensorRT reads",
                )


def _describe(model: onnx.ModelProto, network: Network, precision: str) -> None:
    import onnx

    model.producer_name, model.producer_version = "edgeqc", ""
    # Exporters leave source paths and traces of this machine in the nodes.
    for part in (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
        *model.graph.initializer,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.graph.name = network.name
    del model.metadata_props[:]
    facts = {
        "name": network.name,
        "precision": precision,
        "input_encoding": "(p - 128) / 128",
        **network.facts,
    }
    onnx.helper.set_model_props(model, facts)
