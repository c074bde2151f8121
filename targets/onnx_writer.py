"""From a graph of torch's exporter straight to ONNX, at the opset that the device reads.

torch's own exporter starts at opset 18 and takes seconds; the networks have a dozen operations. Float graphs
and quantized ones (explicit Q/DQ) go the same way.

TensorRT reads no zero point but 0. For it, a tensor x of zero point z is written as x + z * scale, in the same
integers: the bias of the convolution that writes it moves by z * scale, and the biases of those that read it take that
back. Zeros beyond the edge of a map are not 0 then, so what a convolution pads is put there by an operation of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from targets.errors import UnsupportedOpError
from targets.lowering import describe, origin

if TYPE_CHECKING:
    import onnx
    from torch import fx

# Oldest: Q/DQ with a scale for each channel. Newest: what nothing later improves for these networks.
OLDEST_OPSET, NEWEST_OPSET = 13, 18
# In the doc string of a QuantizeLinear: the zero point that was shifted to 0.
ZERO_POINT = "zero point "
_IR_VERSION = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8}


def write_graph(
    module: fx.GraphModule,
    opset: int,
    inputs: list[str],
    outputs: list[str],
    *,
    half: bool = False,
    shift: bool = False,
) -> onnx.ModelProto:
    """Write a float graph, or `CalibratedGrid.folded`, as ONNX.

    Args:
        inputs, outputs: names for the file's tensors, in the graph's order; always float32.
        half: float16 in between.
        shift: let all zero points be 0.

    Raises:
        UnsupportedOpError: an operation, or a form of it, that has no counterpart here.
    """
    return _Writer(module, opset, half, shift).write(inputs, outputs)


def operation_name(node: Any) -> str:
    """What a node of such a file calls its operation: `targets.lowering.origin`'s name, without the type behind it."""
    return str(node.name.rpartition("/")[0] or node.output[0])


class _Writer:
    def __init__(self, module: fx.GraphModule, opset: int, half: bool, shift: bool) -> None:
        import torch
        import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed

        self.module, self.opset, self.half, self.shift = module, opset, half, shift
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.names: dict[fx.Node, str] = {}
        self.origins: dict[str, str] = {}  # name of an operation -> with its module's
        aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
        self.handlers: dict[Any, Any] = {
            decomposed.quantize_per_tensor.default: self._quantize,
            decomposed.dequantize_per_tensor.default: self._dequantize,
            decomposed.dequantize_per_channel.default: self._dequantize_channels,
            aten.conv2d.default: self._convolution,
            aten.add.Tensor: self._sum,
            aten.add_.Tensor: self._sum,
            aten.mul.Tensor: self._product,
            aten.relu6.default: self._clip,
            aten.hardtanh.default: self._clip,
            aten.hardtanh_.default: self._clip,
            aten.relu.default: self._relu,
            aten.relu_.default: self._relu,
            aten.mean.dim: self._mean,
            aten.max_pool2d.default: self._max_pool,
            aten.upsample_nearest2d.vec: self._upsampling,
            aten.view.default: self._reshape,
            aten.reshape.default: self._reshape,
            aten.flatten.using_ints: self._reshape,
        }

    def write(self, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
        from onnx import TensorProto, helper, numpy_helper

        given, found = [], []
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                name = inputs[len(given)]
                given.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, _shape(node)))
                self.names[node] = (
                    self._cast(name, f"{name}/half", TensorProto.FLOAT16) if self.half else name
                )
            elif node.op == "get_attr":
                self._parameter(node)
            elif node.op == "output":
                for value, name in zip(node.args[0], outputs, strict=True):
                    self._output(value, name)
                    found.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, _shape(value)))
            elif node.target in self.handlers:
                self.names[node], self.origins[node.name] = node.name, origin(node)
                self.handlers[node.target](node)
            elif node.users:
                raise UnsupportedOpError(f"{node.target} has no ONNX counterpart here", got=describe(node))
        used = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(
            self.nodes,
            "edgeqc",
            given,
            found,
            [numpy_helper.from_array(value, name) for name, value in self.constants.items() if name in used],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = _IR_VERSION[self.opset]
        return model

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        name = f"{self.origins.get(output, output)}/{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.constants[name] = np.asarray(value, order="C")
        return name

    def _cast(self, source: str, output: str, kind: int) -> str:
        self._node("Cast", [source], output, to=kind)
        return output

    def _parameter(self, node: fx.Node) -> None:
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        array = value.detach().cpu().numpy()
        if self.half and array.dtype == np.float32:
            array = array.astype(np.float16)
        self.names[node] = self._constant(str(node.target), array)

    def _output(self, value: fx.Node, name: str) -> None:
        """Let the file's output have its name; its other readers keep the graph's own."""
        from onnx import TensorProto

        if self.half:
            self._cast(self.names[value], name, TensorProto.FLOAT)
            return
        made = next(node for node in self.nodes if self.names[value] in node.output)
        made.output[0] = name
        for node in self.nodes:
            for index, source in enumerate(node.input):
                if source == self.names[value]:
                    node.input[index] = name

    def _quantize(self, node: fx.Node) -> None:
        self._node("QuantizeLinear", [self.names[node.args[0]], *self._grid(node)], node.name)
        if _zero_point(node) and self.shift:
            # What the integers stand for, for those who compare files.
            self.nodes[-1].doc_string = f"{ZERO_POINT}{_zero_point(node)}"

    def _dequantize(self, node: fx.Node) -> None:
        self._node("DequantizeLinear", [self.names[node.args[0]], *self._grid(node)], node.name)

    def _grid(self, node: fx.Node) -> tuple[str, str]:
        """Names of the scale and zero point of `node`; the quantize and its dequantizes share theirs."""
        scale, zero_point = np.float32(node.args[1]), np.int8(0 if self.shift else _zero_point(node))
        name = f"scale/{scale!s}"
        return self._constant(name, np.asarray(scale)), self._constant(
            f"zero/{zero_point}", np.asarray(zero_point)
        )

    def _dequantize_channels(self, node: fx.Node) -> None:
        values, scales, zero_points, axis, *_ = node.args
        name = self.names[zero_points]
        self.constants[name] = self.constants[name].astype(np.int8)
        self.constants[self.names[scales]] = self.constants[self.names[scales]].astype(np.float32)
        operands = [self.names[values], self.names[scales], name]
        self._node("DequantizeLinear", operands, node.name, axis=axis)

    def _convolution(self, node: fx.Node) -> None:
        arguments = (*node.args, *(None, [1, 1], [0, 0], [1, 1], 1)[len(node.args) - 2 :])
        source, weight, bias, stride, padding, dilation, groups = arguments
        read, written = (self._shift_of(end) for end in (source, _quantize_behind(node)))
        operands = [self.names[source], self.names[weight]]
        if read or written:
            operands.append(self._shifted_bias(node, weight, bias, read, written))
        elif bias is not None:
            operands.append(self.names[bias])
        if read and any(padding):
            operands[0] = self._padded(node, source, padding, read)
            padding = [0, 0]
        self._node(
            "Conv",
            operands,
            node.name,
            strides=list(stride),
            pads=[*padding, *padding],
            dilations=list(dilation),
            group=groups,
        )

    def _shift_of(self, node: fx.Node | None) -> float:
        """What was added to the tensor that `node` quantizes, or dequantizes."""
        zero_point = _zero_point(node) if self.shift and node is not None else 0
        return float(node.args[1]) * zero_point if zero_point else 0.0  # type: ignore[arg-type, union-attr]

    def _shifted_bias(self, node: fx.Node, weight: Any, bias: Any, read: float, written: float) -> str:
        """The bias with the shift of what is written, and without that of what is read."""
        if weight.op == "get_attr":  # of a convolution that stays float
            kernel = self.constants[self.names[weight]].astype(np.float64)
        else:
            values, scales = (self.constants[self.names[part]].astype(np.float64) for part in weight.args[:2])
            kernel = values * scales[:, None, None, None]
        offset = self.constants[self.names[bias]].astype(np.float64) if bias is not None else 0.0
        shifted = offset + written - read * kernel.sum((1, 2, 3))
        return self._constant(f"{node.name}/bias", shifted.astype(np.float32))

    def _padded(self, node: fx.Node, source: Any, padding: Any, edge: float) -> str:
        """The name of `source` with `edge` around it, on its own grid, so that a convolution in int8 can read it."""
        name = f"{node.name}/padded"
        amounts = [0, 0, *padding, 0, 0, *padding]
        operands = [
            self.names[source],
            self._constant(f"pads/{amounts}", np.asarray(amounts, np.int64)),
            self._constant(f"edge/{edge}", np.asarray(edge, np.float32)),
        ]
        self._node("Pad", operands, f"{name}/float", mode="constant")
        self._node("QuantizeLinear", [f"{name}/float", *self._grid(source)], f"{name}/int8")
        self._node("DequantizeLinear", [f"{name}/int8", *self._grid(source)], name)
        return name

    def _sum(self, node: fx.Node) -> None:
        self._node("Add", [self.names[node.args[0]], self.names[node.args[1]]], node.name)

    def _product(self, node: fx.Node) -> None:
        self._node("Mul", [self.names[node.args[0]], self.names[node.args[1]]], node.name)

    def _clip(self, node: fx.Node) -> None:
        from quantize.operations import bounds

        if self._is_superfluous(node):
            self.names[node] = self.names[node.args[0]]
            return
        kind = np.float16 if self.half else np.float32
        shift = self._shift_of(_quantize_behind(node))
        ends = [self._constant(f"clip/{end + shift}", np.asarray(end + shift, kind)) for end in bounds(node)]
        self._node("Clip", [self.names[node.args[0]], *ends], node.name)

    def _relu(self, node: fx.Node) -> None:
        if self._is_superfluous(node):
            self.names[node] = self.names[node.args[0]]
            return
        self._node("Relu", [self.names[node.args[0]]], node.name)

    def _is_superfluous(self, clamp: fx.Node) -> bool:
        """Whether the grid ends where the clamp does, so that rounding clamps: a convolution then is all in int8."""
        from quantize.operations import bounds

        grid = _quantize_behind(clamp)
        if grid is None or not _zero_point(grid):
            return False
        low, high = bounds(clamp)
        least, largest = ((end - _zero_point(grid)) * float(grid.args[1]) for end in (-128, 127))  # type: ignore[arg-type]
        return least >= low and largest <= high * (1 + 1e-6)

    def _mean(self, node: fx.Node) -> None:
        source, axes, *keep = node.args
        flag = int(bool(keep and keep[0]))
        axes = [axis % 4 for axis in axes]
        if self.opset < 18:
            self._node("ReduceMean", [self.names[source]], node.name, axes=axes, keepdims=flag)
        else:
            operands = [self.names[source], self._constant(f"axes/{axes}", np.asarray(axes, np.int64))]
            self._node("ReduceMean", operands, node.name, keepdims=flag)

    def _max_pool(self, node: fx.Node) -> None:
        source, window, *rest = node.args
        stride = rest[0] if rest and rest[0] else window
        if len(rest) > 1:
            raise UnsupportedOpError("a padded or dilated max pool", got=describe(node))
        self._node(
            "MaxPool", [self.names[source]], node.name, kernel_shape=list(window), strides=list(stride)
        )

    def _upsampling(self, node: fx.Node) -> None:
        before, after = _shape(node.args[0]), _shape(node)
        factors = np.asarray([new / old for new, old in zip(after, before, strict=True)], np.float32)
        self._node(
            "Resize",
            [self.names[node.args[0]], "", self._constant(f"factors/{factors.tolist()}", factors)],
            node.name,
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )

    def _reshape(self, node: fx.Node) -> None:
        shape = _shape(node)
        operands = [self.names[node.args[0]], self._constant(f"shape/{shape}", np.asarray(shape, np.int64))]
        self._node("Reshape", operands, node.name)


def _zero_point(node: fx.Node) -> int:
    """Of a quantize or dequantize; 0 for others, such as a tensor that stays float."""
    return int(node.args[2]) if "quantize_per_tensor" in str(node.target) else 0  # type: ignore[call-overload]


def _quantize_behind(node: fx.Node) -> fx.Node | None:
    """The quantize that reads `node`, or the clamp that alone reads it; None where the tensor stays float."""
    from quantize.operations import CLAMPS

    for reader in node.users:
        if "quantize_per_tensor" in str(reader.target):
            return reader
        if reader.target in CLAMPS and len(node.users) == 1:
            return _quantize_behind(reader)
    return None


def _shape(node: fx.Node) -> list[int]:
    while "val" not in node.meta:  # Q and DQ were put in after the shapes were known
        node = node.all_input_nodes[0]
    return [int(size) for size in node.meta["val"].shape]
