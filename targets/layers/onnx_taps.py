"""Taps in Q/DQ ONNX: the int8 tensor behind each operation becomes one more output of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets.layers.layer import INPUT, Layer, LoweredFile, Replay, Steps, on_grid, sdk, unreadable
from targets.onnx_writer import ZERO_POINT, operation_name

_CLAMPS = ("Clip", "Relu")
_GIVEN = "given/"


class OnnxFile(LoweredFile):
    """A Q/DQ graph. An operation's tensor is what its QuantizeLinear makes; without one, its own output.

    Raises:
        InputError: no ONNX file, or a graph without QuantizeLinear.
    """

    def __init__(self, path: Path) -> None:
        import onnx
        from google.protobuf.message import DecodeError

        self.path = path
        try:
            self.model = onnx.load(path)
        except DecodeError as exc:
            raise unreadable(path, f"no ONNX file: {exc}") from exc
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in self.model.graph.initializer}
        self.makers = {name: node for node in self.model.graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = [output.name for output in self.model.graph.output]
        self.tensors: dict[str, str] = {}  # layer name -> tensor that is tapped
        self.layers = tuple(self._read())
        if not any(layer.quantized for layer in self.layers):
            raise unreadable(path, "a graph without QuantizeLinear")

    def _read(self) -> list[Layer]:
        given = self.model.graph.input[0].name
        layers = [self._layer(INPUT, given, "input", "input", {})]
        steps = {INPUT: layers[0].step}
        for node in self.model.graph.node:
            # A pad belongs to the convolution behind it.
            if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Pad") or self._is_clamp_of(node):
                continue
            layer = self._layer(
                node.output[0], node.output[0], operation_name(node), node.op_type, steps, node
            )
            layers.append(layer)
            steps[layer.name] = layer.step
        return layers

    def _layer(
        self, name: str, tensor: str, label: str, operation: str, steps: Mapping[str, float], node: Any = None
    ) -> Layer:
        sources = [self._source(source) for source in node.input] if node is not None else []
        inputs = tuple(source for source in sources if source is not None)
        readers = self.readers.get(tensor, [])
        if len(readers) == 1 and self._is_clamp_of(readers[0]):
            readers = self.readers.get(readers[0].output[0], [])
        quantizer = next((reader for reader in readers if reader.op_type == "QuantizeLinear"), None)
        if quantizer is None:
            step = max((steps[source] for source in inputs), default=1.0)
            self.tensors[name] = tensor
            return Layer(name, label, operation, inputs, step, quantized=False)
        readers = self.readers.get(quantizer.output[0], [])
        name = next((reader.output[0] for reader in readers if reader.output[0] in self.outputs), name)
        self.tensors[name] = quantizer.output[0]
        # What the tensor's integers stand for is said by the nodes that read it.
        _, scale, zero = (readers[0] if readers else quantizer).input
        shifted = quantizer.doc_string.removeprefix(ZERO_POINT)
        zero_point = int(shifted or self.constants[zero])
        return Layer(name, label, operation, inputs, float(self.constants[scale]), zero_point=zero_point)

    def _is_clamp_of(self, node: Any) -> bool:
        """Whether `node` is a clamp that runs as one with the operation before it: nothing is rounded between."""
        if node.op_type not in _CLAMPS:
            return False
        before = self.makers.get(node.input[0])
        behind = self.readers.get(node.output[0], [])
        return (
            before is not None
            and before.op_type not in ("QuantizeLinear", "DequantizeLinear")
            and len(self.readers[node.input[0]]) == 1
            and any(reader.op_type == "QuantizeLinear" for reader in behind)
        )

    def _source(self, tensor: str) -> str | None:
        """The layer whose tensor an operation reads as `tensor`; None for weights and other constants."""
        maker = self.makers.get(tensor)
        while maker is not None and maker.op_type in ("DequantizeLinear", "Pad"):
            tensor = maker.input[0]
            if tensor in self.tensors.values():
                break
            maker = self.makers.get(tensor)
            if maker is not None and maker.op_type == "QuantizeLinear":  # of what was padded
                maker = self.makers.get(maker.input[0])
        return next((name for name, tapped in self.tensors.items() if tapped == tensor), None)

    def steps(self, layers: Sequence[Layer]) -> dict[str, float]:
        """See `LoweredFile.steps`."""
        own = {layer.name: layer.step for layer in self.layers}
        return {layer.name: own[layer.name] for layer in layers if layer.name in own}

    def write_tapped(self, layers: Sequence[Layer], folder: Path) -> dict[str, str]:
        """See `LoweredFile.write_tapped`."""
        import onnx
        from onnx import TensorProto, helper

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        taps = [layer for layer in layers if layer.name not in self.outputs]
        for layer in taps:
            kind = TensorProto.INT8 if layer.quantized else TensorProto.FLOAT
            entry = helper.make_tensor_value_info(self.tensors[layer.name], kind, None)
            model.graph.output.append(entry)
        onnx.save(model, folder / self.path.name)
        return {layer.name: self.tensors[layer.name] for layer in taps}

    def replay(self) -> Replay:
        """onnxruntime without any optimization: each Q, DQ and operation as it is written."""
        return _OnnxReplay(self)


class _OnnxReplay(Replay):
    def __init__(self, file: OnnxFile) -> None:
        import onnx
        from onnx import TensorProto, helper

        ort = sdk("onnx")
        model = onnx.ModelProto()
        model.CopyFrom(file.model)
        graph, layers = model.graph, {layer.name: layer for layer in file.layers}
        names = {tensor: name for name, tensor in file.tensors.items()}
        for node in list(graph.node):
            if node.op_type == "QuantizeLinear" and node.input[0] == graph.input[0].name:
                graph.node.remove(node)
                continue
            for index, tensor in enumerate(node.input):
                if tensor in names:
                    node.input[index] = _GIVEN + names[tensor]
        del graph.input[:], graph.output[:]
        for name, layer in layers.items():
            kind = TensorProto.INT8 if layer.quantized else TensorProto.FLOAT
            if any(_GIVEN + name in node.input for node in graph.node):
                graph.input.append(helper.make_tensor_value_info(_GIVEN + name, kind, None))
            if name != INPUT:
                graph.output.append(helper.make_tensor_value_info(file.tensors[name], kind, None))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.given = [entry.name.removeprefix(_GIVEN) for entry in self.session.get_inputs()]
        self.layers = [layer for name, layer in layers.items() if name != INPUT]
        self.tensors = [file.tensors[layer.name] for layer in self.layers]
        self.grids = layers
        self.how = f"onnxruntime {ort.__version__}, operation by operation"

    def run(self, given: Mapping[str, Steps]) -> dict[str, Steps]:
        feeds = {}
        for name in self.given:
            grid = self.grids[name]
            feeds[_GIVEN + name] = (
                on_grid(given[name], grid.zero_point)
                if grid.quantized
                else given[name] * np.float32(grid.step)
            )
        found = self.session.run(self.tensors, feeds)
        return {
            layer.name: values.astype(np.float32) - layer.zero_point
            if layer.quantized
            else values / np.float32(layer.step)
            for layer, values in zip(self.layers, found)
        }
