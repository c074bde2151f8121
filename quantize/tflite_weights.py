"""The convolutions of a MobileNetV2 ``.tflite``, dequantized, in the order in which they run."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NotMobileNetError(ValueError):
    """The file is not a MobileNetV2 that can be read; the text says why."""


@dataclass(frozen=True)
class FoldedConv:
    """A convolution with its batch norm folded in: weight [O, I/groups, kh, kw] and bias [O], float64."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    depthwise: bool


@dataclass(frozen=True)
class TfliteEncoder:
    """Convolutions in running order, and the file's input convention: x = input_scale * (p - input_zero)."""

    convolutions: list[FoldedConv]
    input_scale: float
    input_zero: float


def read_tflite_encoder(path: Path) -> TfliteEncoder:
    """Read ``path``; ``NotMobileNetError`` if it is no readable TFLite file or another network."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise NotMobileNetError(
            "reading .tflite needs ai-edge-litert: pip install 'edgeqc[litert]'"
        ) from error
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise NotMobileNetError("not a TFLite file")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        return _encoder(schema, model)
    except (struct.error, IndexError, TypeError, AttributeError) as error:
        # What the generated reader raises when an offset points outside of the file.
        raise NotMobileNetError(f"a damaged TFLite file ({error})") from error


def _encoder(schema: Any, model: Any) -> TfliteEncoder:
    graph = model.subgraphs[0]
    convolutions: list[FoldedConv] = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        if kind not in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D):
            continue
        depthwise = kind == schema.BuiltinOperator.DEPTHWISE_CONV_2D
        weight = _constant(schema, model, graph.tensors[operator.inputs[1]])
        # CONV_2D keeps [O, kh, kw, I], DEPTHWISE_CONV_2D [1, kh, kw, O].
        weight = weight.transpose(3, 0, 1, 2) if depthwise else weight.transpose(0, 3, 1, 2)
        bias = np.zeros(weight.shape[0])
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            bias = _constant(schema, model, graph.tensors[operator.inputs[2]])
        convolutions.append(FoldedConv(weight, bias, depthwise))
    _check_mobilenet(convolutions)
    entry = graph.tensors[graph.inputs[0]]
    scale, zero = 1 / 127.5, 127.5  # what Google's float MobileNets are given
    if entry.type in (schema.TensorType.UINT8, schema.TensorType.INT8):
        scale, zero = float(entry.quantization.scale[0]), float(entry.quantization.zeroPoint[0])
        if entry.type == schema.TensorType.INT8:
            zero += 128
    return TfliteEncoder(convolutions, scale, zero)


def _check_mobilenet(convolutions: list[FoldedConv]) -> None:
    """A stem of 3x3 on RGB, then depthwise and pointwise in MobileNetV2's order."""
    order = [conv.depthwise for conv in convolutions[:9]]
    if order != [False, True, False, False, True, False, False, True, False]:
        raise NotMobileNetError("its first convolutions are not those of a MobileNetV2")
    if convolutions[0].weight.shape[1:] != (3, 3, 3):
        raise NotMobileNetError(f"its first convolution is {convolutions[0].weight.shape}, wanted 3x3 on RGB")


def _constant(schema: Any, model: Any, tensor: Any) -> NDArray[np.float64]:
    """A constant tensor's real values, float64: float, or integers with scale and zero point."""
    kinds: dict[Any, np.dtype[Any]] = {
        schema.TensorType.FLOAT32: np.dtype("<f4"),
        schema.TensorType.FLOAT16: np.dtype("<f2"),
        schema.TensorType.UINT8: np.dtype("u1"),
        schema.TensorType.INT8: np.dtype("i1"),
        schema.TensorType.INT32: np.dtype("<i4"),
    }
    if tensor.type not in kinds:
        raise NotMobileNetError(f"weights of TFLite type {tensor.type}")
    data = model.buffers[tensor.buffer].data
    if data is None:
        raise NotMobileNetError("weights that are computed or kept outside of the file")
    dtype = kinds[tensor.type]
    values: NDArray[Any] = np.frombuffer(np.asarray(data, dtype=np.uint8).tobytes(), dtype=dtype)
    values = values.reshape(tuple(int(n) for n in tensor.shape)).astype(np.float64)
    if dtype.kind == "f":
        return values
    quantization = tensor.quantization
    scale = np.asarray(quantization.scale, dtype=np.float64)
    zero = np.asarray(quantization.zeroPoint, dtype=np.float64)
    if scale.size > 1:  # per channel, along the axis that the file names
        along = [1] * values.ndim
        along[quantization.quantizedDimension] = scale.size
        scale = scale.reshape(along)
        zero = zero.reshape(along) if zero.size > 1 else zero
    return np.asarray((values - zero) * scale)
