"""From the quantized graph straight to an int8 TFLite flatbuffer.

The grid decides everything already (int8 weights, one scale for each tensor), so nothing is left to convert:
each operation of the graph becomes one of TFLite's, a clamp goes into the operation before it, biases become
int32 at input scale times weight scale, and the layout turns from NCHW to NHWC. One operation is added:
PAD, where torch pads both sides and TFLite's SAME would pad one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from targets.errors import UnsupportedOpError
from targets.lowering import describe, origin

if TYPE_CHECKING:
    from torch import fx

# Operation -> version: int8 arrived with these, and TensorFlow 2.5 knows them all. Version 3 of the resize is for half
# pixel centers, and compilers 14 and 15 refuse it.
VERSIONS = {
    "ADD": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MUL": 2,
    "PAD": 2,
    "RESHAPE": 1,
    "RESIZE_NEAREST_NEIGHBOR": 2,
}
SCHEMA_VERSION = 3


def tflite(graph: fx.GraphModule, inputs: list[str], outputs: list[str]) -> bytes:
    """Write a quantized graph as TFLite.

    Args:
        graph: `CalibratedGrid.folded`.
        inputs, outputs: names for the file's tensors, in the graph's order.

    Returns:
        the flatbuffer; int8 in and out, NHWC.

    Raises:
        UnsupportedOpError: an operation, or a form of it, that has no int8 TFLite counterpart here.
    """
    return _Writer(graph, inputs, outputs).write()


class _Writer:
    def __init__(self, graph: fx.GraphModule, inputs: list[str], outputs: list[str]) -> None:
        import torch
        import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
        from ai_edge_litert import schema_py_generated

        self.schema: Any = schema_py_generated
        self.module = graph
        self.input_names, self.output_names = list(inputs), list(outputs)
        self.buffers: list[Any] = [self.schema.BufferT()]  # buffer 0 is empty by the format's rule
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: dict[str, int] = {}
        self.values: dict[fx.Node, int] = {}  # node of the graph -> tensor of the file
        aten = torch.ops.aten
        self.handlers: dict[Any, Callable[[fx.Node, int], None]] = {
            aten.conv2d.default: self._convolution,
            aten.add.Tensor: self._sum,
            aten.add_.Tensor: self._sum,
            aten.mul.Tensor: self._product,
            aten.mean.dim: self._mean,
            aten.max_pool2d.default: self._max_pool,
            aten.upsample_nearest2d.vec: self._upsampling,
            aten.view.default: self._reshape,
            aten.reshape.default: self._reshape,
            aten.flatten.using_ints: self._reshape,
        }
        self.clamps = {
            aten.relu6.default: "RELU6",
            aten.hardtanh.default: "RELU6",
            aten.hardtanh_.default: "RELU6",
            aten.relu.default: "RELU",
            aten.relu_.default: "RELU",
        }
        decomposed = torch.ops.quantized_decomposed
        self.quantize = decomposed.quantize_per_tensor.default
        self.dequantize = decomposed.dequantize_per_tensor.default
        self.dequantize_weights = decomposed.dequantize_per_channel.default

    def write(self) -> bytes:
        found: list[int] = []
        sources: list[int] = []
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                # The tensor is made by the quantize behind it.
                continue
            if node.op == "output":
                found = [self.values[value] for value in node.args[0]]
            elif node.target is self.quantize and node.args[0].op == "placeholder":
                self.values[node] = self._activation(node.args[0], node, self.input_names[len(sources)])
                sources.append(self.values[node])
            elif node.target is self.dequantize:
                self.values[node] = self.values[node.args[0]]
            elif node.target in self.handlers:
                quantized = self._quantized(node)
                self.values[quantized] = self._activation(node, quantized, origin(node))
                self.handlers[node.target](node, self.values[quantized])
            elif node.op == "call_function" and node.target not in (
                self.quantize,
                self.dequantize_weights,
                *self.clamps,
            ):
                raise UnsupportedOpError(f"{node.target} has no int8 TFLite counterpart", got=describe(node))
        for name, index in zip(self.output_names, found, strict=True):
            self.tensors[index].name = name.encode()
        return self._pack(sources, found)

    # What the graph says about a node.

    def _quantized(self, node: fx.Node) -> fx.Node:
        """The quantize behind `node`, or behind its clamp."""
        (reader,) = node.users
        if reader.target in self.clamps:
            (reader,) = reader.users
        if reader.target is not self.quantize:
            raise UnsupportedOpError(f"{node.name} is not quantized", got=f"{reader.target} reads it")
        return reader

    def _clamp(self, node: fx.Node) -> int:
        """TFLite's fused activation function for the reader of `node`."""
        functions = self.schema.ActivationFunctionType
        (reader,) = node.users
        if reader.target not in self.clamps:
            return int(functions.NONE)
        name = self.clamps[reader.target]
        if "hardtanh" in str(reader.target) and tuple(reader.args[1:3]) != (0.0, 6.0):
            raise UnsupportedOpError("only a clamp to 0..6 can be fused", got=describe(reader))
        return int(getattr(functions, name))

    def _attribute(self, node: fx.Node) -> npt.NDArray[Any]:
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        array: npt.NDArray[Any] = value.detach().cpu().numpy()
        return array

    def _scale(self, tensor: int) -> np.float32:
        return np.float32(self.tensors[tensor].quantization.scale[0])

    # What goes into the file.

    def _activation(self, node: fx.Node, quantized: fx.Node, name: str) -> int:
        scale, zero_point = float(quantized.args[1]), int(quantized.args[2])
        return self._tensor(name, _nhwc(node), "INT8", [scale], zero_point=zero_point)

    def _tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: str,
        scales: list[float] | npt.NDArray[np.float32] | None = None,
        *,
        axis: int = 0,
        zero_point: int = 0,
        data: npt.NDArray[Any] | None = None,
    ) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape = name.encode(), list(shape)
        tensor.type = getattr(self.schema.TensorType, kind)
        tensor.buffer = 0
        tensor.isVariable = False
        if scales is not None:
            quantization = self.schema.QuantizationParametersT()
            quantization.scale = np.asarray(scales, np.float32)
            quantization.zeroPoint = np.full(len(scales), zero_point, np.int64)
            quantization.quantizedDimension = axis
            tensor.quantization = quantization
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            tensor.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _constant(self, name: str, values: Any) -> int:
        data = np.asarray(values, np.int32)
        return self._tensor(name, data.shape, "INT32", data=data)

    def _operator(
        self,
        name: str,
        inputs: list[int],
        output: int,
        options: str = "",
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault(name, len(self.codes))
        operator.inputs, operator.outputs = inputs, [output]
        if options:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
            for field, value in (fields or {}).items():
                setattr(operator.builtinOptions, field, value)
        self.operators.append(operator)

    def _convolution(self, node: fx.Node, output: int) -> None:
        source, weight, bias, stride, padding, dilation, groups = _defaults(
            node, None, None, None, [1, 1], [0, 0], [1, 1], 1
        )
        if weight.target is not self.dequantize_weights or list(dilation) != [1, 1]:
            raise UnsupportedOpError("a convolution in an unknown form", got=describe(node))
        values = self._attribute(weight.args[0])
        scales = self._attribute(weight.args[1]).astype(np.float32)
        incoming = self.values[source]
        channels = self.tensors[incoming].shape[3]
        depthwise = groups == channels and groups > 1
        if not depthwise and groups != 1:
            raise UnsupportedOpError(
                "a convolution in groups", wanted="full or depthwise", got=describe(node)
            )
        kernel = values.shape[2:]
        same = all(s == 1 and k == 2 * p + 1 for s, k, p in zip(stride, kernel, padding, strict=True))
        if any(padding) and not same:
            incoming = self._padded(incoming, padding, node)
        # [O, I, kh, kw] -> [O, kh, kw, I]; depthwise [O, 1, kh, kw] -> [1, kh, kw, O]
        turned = values.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
        name = origin(node)
        steps = self._scale(incoming) * scales
        operands = [
            incoming,
            self._tensor(
                f"{name}.weight", turned.shape, "INT8", scales, axis=3 if depthwise else 0, data=turned
            ),
        ]
        offsets = np.zeros(len(values)) if bias is None else self._attribute(bias).astype(np.float64)
        counts = np.rint(offsets / steps.astype(np.float64))
        if np.abs(counts).max(initial=0) >= 2**31:
            raise UnsupportedOpError(f"the bias of {name} does not fit into int32", got=float(offsets.max()))
        operands.append(
            self._tensor(f"{name}.bias", counts.shape, "INT32", steps, data=counts.astype(np.int32))
        )
        fields = {
            "padding": self.schema.Padding.SAME if same else self.schema.Padding.VALID,
            "strideH": stride[0],
            "strideW": stride[1],
            "dilationHFactor": 1,
            "dilationWFactor": 1,
            "fusedActivationFunction": self._clamp(node),
        }
        if depthwise:
            fields["depthMultiplier"] = len(values) // channels
            self._operator("DEPTHWISE_CONV_2D", operands, output, "DepthwiseConv2DOptions", fields)
        else:
            self._operator("CONV_2D", operands, output, "Conv2DOptions", fields)

    def _padded(self, source: int, padding: list[int], node: fx.Node) -> int:
        count, height, width, channels = self.tensors[source].shape
        shape = (count, height + 2 * padding[0], width + 2 * padding[1], channels)
        grid = self.tensors[source].quantization
        output = self._tensor(
            f"{origin(node)}.pad", shape, "INT8", [float(grid.scale[0])], zero_point=int(grid.zeroPoint[0])
        )
        amounts = [[0, 0], [padding[0]] * 2, [padding[1]] * 2, [0, 0]]
        self._operator("PAD", [source, self._constant("pad", amounts)], output, "PadOptions")
        return output

    def _sum(self, node: fx.Node, output: int) -> None:
        first, second, *_ = node.args
        fields = {"fusedActivationFunction": self._clamp(node)}
        self._operator("ADD", [self.values[first], self.values[second]], output, "AddOptions", fields)

    def _product(self, node: fx.Node, output: int) -> None:
        first, second, *_ = node.args
        self._operator("MUL", [self.values[first], self.values[second]], output, "MulOptions")

    def _mean(self, node: fx.Node, output: int) -> None:
        source, axes, keep = _defaults(node, None, None, False)
        if sorted(axis % 4 for axis in axes) != [2, 3] or not keep:
            raise UnsupportedOpError("only the mean of a whole map is supported", got=describe(node))
        operands = [self.values[source], self._constant("axes", [1, 2])]
        self._operator("MEAN", operands, output, "ReducerOptions", {"keepDims": True})

    def _max_pool(self, node: fx.Node, output: int) -> None:
        source, window, stride, padding = _defaults(node, None, None, None, [0, 0])
        stride = stride or window
        if any(padding) or len(node.args) > 4:
            raise UnsupportedOpError("a padded or dilated max pool", got=describe(node))
        fields = {
            "padding": self.schema.Padding.VALID,
            "filterHeight": window[0],
            "filterWidth": window[1],
            "strideH": stride[0],
            "strideW": stride[1],
        }
        self._operator("MAX_POOL_2D", [self.values[source]], output, "Pool2DOptions", fields)

    def _upsampling(self, node: fx.Node, output: int) -> None:
        source = self.values[node.args[0]]
        before, after = self.tensors[source].shape[1:3], self.tensors[output].shape[1:3]
        if any(new % old for new, old in zip(after, before, strict=True)):
            raise UnsupportedOpError("nearest upsampling by a fraction", got=f"{before} to {after}")
        operands = [source, self._constant("size", after)]
        self._operator("RESIZE_NEAREST_NEIGHBOR", operands, output, "ResizeNearestNeighborOptions")

    def _reshape(self, node: fx.Node, output: int) -> None:
        source = self.values[node.args[0]]
        before, after = list(self.tensors[source].shape), list(self.tensors[output].shape)
        if before[1:3] != [1, 1]:
            raise UnsupportedOpError(
                "a reshape of maps, whose order differs between layouts", got=f"{before} to {after}"
            )
        operands = [source, self._constant("shape", after)]
        self._operator("RESHAPE", operands, output, "ReshapeOptions", {"newShape": after})

    def _pack(self, inputs: list[int], outputs: list[int]) -> bytes:
        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs, graph.name = inputs, outputs, b"main"
        model = self.schema.ModelT()
        model.version, model.description = SCHEMA_VERSION, b"edgeqc"
        model.subgraphs, model.buffers, model.operatorCodes = [graph], self.buffers, []
        for name in self.codes:
            code = self.schema.OperatorCodeT()
            # Both fields: interpreters of before 2.4 read the old one.
            code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, name)
            code.version = VERSIONS[name]
            model.operatorCodes.append(code)
        return pack(model)


def pack(model: Any) -> bytes:
    """Serialize the schema's `ModelT`, constants inside and aligned to 16 bytes as the format asks."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]
        def StartVector(self, size: int, count: int, alignment: int) -> Any:  # noqa: N802  its name there
            return super().StartVector(size, count, 16 if size == 1 else alignment)

    builder = Aligned(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _defaults(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """Positional arguments of `node`, completed."""
    return (*node.args, *defaults[len(node.args) :])[: len(defaults)]


def _nhwc(node: fx.Node) -> tuple[int, ...]:
    shape = tuple(int(size) for size in node.meta["val"].shape)
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else shape
