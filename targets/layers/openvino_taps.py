"""Taps in OpenVINO IR: the dequantized tensor behind each operation becomes one more result.

Not the int8 tensor: OpenVINO keeps its int8 tensors inside of kernels, and a result there takes them apart. With a
result behind the dequantization the program stays closest to the one that ships (docs/parity.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets.layers.layer import Layer, LoweredFile, sdk, unreadable

# What stands between an operation and its quantize, and between that and the dequantized tensor.
_BEFORE = ("Maximum", "Minimum", "Clamp", "Relu", "Convert", "Subtract", "Multiply")
_BEHIND = ("Convert", "Subtract", "Multiply")
_TAP = "tap/"


class OpenVinoFile(LoweredFile):
    """IR that was read from ONNX and keeps its tensor names; the layers are another file's.

    Raises:
        InputError: no IR.
    """

    def __init__(self, path: Path) -> None:
        self.ov = sdk("openvino")
        self.path = path
        self.model = self._load()

    def _load(self) -> Any:
        try:
            return self.ov.Core().read_model(self.path)
        except RuntimeError as exc:
            raise unreadable(self.path, f"no OpenVINO IR: {str(exc).strip()[:200]}") from exc

    def steps(self, layers: Sequence[Layer]) -> dict[str, float]:
        """See `LoweredFile.steps`."""
        tensors = _Tensors(self.model)
        ports = {layer: tensors.port(layer) for layer in layers}
        return {
            layer.name: _scale(port) if layer.quantized else layer.step
            for layer, port in ports.items()
            if port is not None
        }

    def write_tapped(self, layers: Sequence[Layer], folder: Path) -> dict[str, str]:
        """See `LoweredFile.write_tapped`."""
        model = self._load()
        tensors = _Tensors(model)
        taps = {}
        for layer in layers:
            if layer.name in tensors.outputs:
                continue
            port = tensors.port(layer)
            taps[layer.name] = _TAP + layer.name
            port.set_names({*port.get_names(), taps[layer.name]})
            model.add_outputs(port)
        self.ov.save_model(model, folder / self.path.name, compress_to_fp16=False)
        return taps


class _Tensors:
    """The graph's tensors by name."""

    def __init__(self, model: Any) -> None:
        self.made = {
            name: port for node in model.get_ops() for port in node.outputs() for name in port.get_names()
        }
        self.outputs = {
            name: result.get_node().input_value(0) for result in model.outputs for name in result.get_names()
        }

    def port(self, layer: Layer) -> Any:
        """The layer's tensor, dequantized where the layer is quantized; None where there is none."""
        if layer.name in self.outputs:
            return self.outputs[layer.name]
        port = self.made.get(layer.name)
        if port is None or not layer.quantized:
            return port
        quantize = _next(port, _BEFORE, "FakeQuantize")
        dequantize = None if quantize is None else _next(quantize.output(0), _BEHIND, "Multiply")
        return None if dequantize is None else dequantize.output(0)


def _next(port: Any, through: Sequence[str], wanted: str) -> Any:
    """The nearest node of type `wanted` behind `port`, through nodes of the given types; None: there is none."""
    waiting = [port]
    while waiting:
        readers = [entry.get_node() for entry in waiting.pop(0).get_target_inputs()]
        for node in sorted(readers, key=lambda node: str(node.get_friendly_name())):
            if node.get_type_name() == wanted:
                return node
            if node.get_type_name() in through:
                waiting.append(node.output(0))
    return None


def _scale(port: Any) -> float:
    """The factor of the Multiply that dequantizes."""
    source = port.get_node().input_value(1).get_node()
    while source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    return float(np.ravel(source.data)[0])
