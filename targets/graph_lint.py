"""Patterns that are known to go wrong on a target: refused before a file is written, each with reason and remedy.

Every rule rests on a measurement that tests/integration/test_known_faults.py repeats: the pattern in the real runtime
departs from the same operations run one by one, and what the remedy says does not. A pattern without such evidence
is no rule.

OpenVINO's rules name version and processors because the kernels differ between them. A file is exported on one
machine and runs on others, so a rule holds wherever the exporter runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from targets.errors import KnownFaultError
from targets.onnx_writer import operation_name

INT32_LIMIT = 2**31
# XNNPACK adds in fixed point with room for 8 bits between an input's step and the output's.
XNNPACK_LARGEST_RATIO = 256
_WHERE = "2026.4.1, x86-64 without AMX instructions"
_SMALLEST_RANGE = "give a tensor that is as good as 0 the range 1/16, as quantize.ranges.SMALLEST_RANGE does."


@dataclass(frozen=True)
class Finding:
    """One place in a lowered graph.

    Attributes:
        operation: its name in the file, with the module that made it.
        pattern: what stands there.
        reason: what goes wrong, where that was seen, and by how much.
        remedy: what to write in its place.
    """

    operation: str
    pattern: str
    reason: str
    remedy: str


def refuse(findings: list[Finding], target: str) -> None:
    """Refuse to write a file that is known to answer wrongly.

    Raises:
        KnownFaultError: naming every place, its reason and its remedy.
    """
    if findings:
        raise KnownFaultError(
            f"{len(findings)} {'place' if len(findings) == 1 else 'places'} in the network would answer wrongly"
            f" on target {target}",
            wanted="no pattern that is known to go wrong there",
            got="; ".join(f"{f.operation}: {f.pattern}. {f.reason}" for f in findings),
            next_step="; ".join(dict.fromkeys(f.remedy for f in findings)),
        )


class _Onnx:
    """A Q/DQ graph as the rules see it: operations, and the quantized tensors between them."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.nodes = list(model.graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        # An int8 tensor is read through any of its DequantizeLinear, and an output of the graph reads as well.
        read = [name for n in self.nodes if n.op_type != "DequantizeLinear" for name in n.input]
        read += [entry.name for entry in model.graph.output]
        self.readers = Counter(self.quantized(name) or name for name in read)
        convolved = [node.input[0] for node in self.nodes if node.op_type == "Conv"]
        self.convolved = {self.quantized(name) or name for name in convolved}

    def of(self, *kinds: str) -> Iterator[Any]:
        """The operations of these types that read an int8 tensor."""
        return (n for n in self.nodes if n.op_type in kinds and any(map(self.quantized, n.input)))

    def quantized(self, tensor: str) -> str | None:
        """The int8 tensor that `tensor` is the dequantized form of; None for floats and weights."""
        maker = self.makers.get(tensor)
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] in self.constants:
            return None
        return str(maker.input[0])

    def is_convolved(self, node: Any) -> bool:
        """Whether a convolution reads the operation's answer, quantized or not."""
        answer = node.output[0]
        quantizers = (n for n in self.nodes if n.op_type == "QuantizeLinear" and n.input[0] == answer)
        return not self.convolved.isdisjoint([answer, *(quantizer.output[0] for quantizer in quantizers)])

    def scale(self, tensor: str) -> Any:
        """Scale, or scales of the channels, of a dequantized tensor."""
        return self.constants[self.makers[tensor].input[1]].astype(np.float64)


def _second_reader(graph: _Onnx) -> Iterator[Finding]:
    for node in graph.of("ReduceMax", "GlobalMaxPool"):
        source = graph.quantized(node.input[0])
        if source is not None and graph.readers[source] > 1:
            yield Finding(
                operation_name(node),
                f"int8 {node.op_type} whose input has a second reader",
                f"OpenVINO's int8 reduction answers with its zero point shifted ({_WHERE}): 33 steps off where it was"
                " measured.",
                "take the global maximum with a chain of max pools, as quantize.models does.",
            )


def _minimum(graph: _Onnx) -> Iterator[Finding]:
    for node in graph.of("ReduceMin"):
        if graph.is_convolved(node):
            yield Finding(
                operation_name(node),
                "int8 ReduceMin that a convolution reads",
                f"OpenVINO's int8 minimum over a map was 34 steps off ({_WHERE}).",
                "take the maximum of the negated map with a chain of max pools.",
            )


def _concatenation(graph: _Onnx) -> Iterator[Finding]:
    for node in graph.of("Concat"):
        if graph.is_convolved(node):
            yield Finding(
                operation_name(node),
                "int8 Concat that a convolution reads",
                f"OpenVINO rounds its values to a grid that is many times coarser ({_WHERE}): 27 steps off where it"
                " was measured; and it forces one scale on all that it joins.",
                "write one convolution for each tensor and a sum: the same linear map.",
            )


def _counted_padding(graph: _Onnx) -> Iterator[Finding]:
    for node in graph.of("AveragePool"):
        settings = {attribute.name: attribute for attribute in node.attribute}
        counted = "count_include_pad" in settings and settings["count_include_pad"].i
        source = graph.quantized(node.input[0])
        if counted and any(settings["pads"].ints if "pads" in settings else ()) and graph.readers[source] > 1:
            yield Finding(
                operation_name(node),
                "int8 AveragePool that counts its padding, whose input has a second reader",
                f"OpenVINO pads with its shifted zero point ({_WHERE}): 69 steps off at the edge.",
                "write a depthwise convolution of constant weights.",
            )


def _float_bias(graph: _Onnx) -> Iterator[Finding]:
    for node in graph.of("Conv", "Gemm"):
        if len(node.input) < 3 or node.input[2] not in graph.constants:
            continue
        if graph.quantized(node.input[0]) is None or node.input[1] not in graph.makers:
            continue
        steps = graph.scale(node.input[0]) * np.ravel(graph.scale(node.input[1]))
        counts = np.abs(np.ravel(graph.constants[node.input[2]]).astype(np.float64)) / steps
        if counts.max(initial=0) >= INT32_LIMIT:
            yield Finding(
                operation_name(node),
                f"a bias of {counts.max():.3g} steps of input times weight",
                "onnxruntime (1.31.1) turns biases into int32, where this one does not fit: 96 steps off where it was"
                " measured.",
                _SMALLEST_RANGE,
            )


Rule = Callable[[_Onnx], Iterator[Finding]]
ONNX_RULES: Mapping[str, tuple[Rule, ...]] = {
    "openvino": (_second_reader, _minimum, _concatenation, _counted_padding),
    "onnx": (_float_bias,),
    "tensorrt": (_float_bias,),
}


def onnx_findings(model: Any, target: str) -> list[Finding]:
    """What in a Q/DQ graph (`ModelProto`) is known to go wrong on `target`; a float graph has nothing."""
    graph = _Onnx(model)
    return [finding for rule in ONNX_RULES.get(target, ()) for finding in rule(graph)]


def tflite_findings(model: Any) -> list[Finding]:
    """What in an int8 TFLite file (`ModelT`) is known to go wrong in TFLite's kernels."""
    from targets.tflite_file import operations

    graph = model.subgraphs[0]
    found = []
    for operator, kind in zip(graph.operators, operations(model)):
        name = graph.tensors[operator.outputs[0]].name.decode()
        if kind == "ADD":
            scales = [
                float(graph.tensors[i].quantization.scale[0]) for i in (*operator.inputs, *operator.outputs)
            ]
            ratio = max(scales[:2]) / scales[2]
            if ratio >= XNNPACK_LARGEST_RATIO:
                found.append(
                    Finding(
                        name,
                        f"a sum whose input has steps {ratio:.3g} times as large as its output's",
                        "XNNPACK (LiteRT 2.3.0) adds wrongly from a ratio of 256 on, without a word: up to 255 steps.",
                        "calibrate on images on which the sum's range is near its inputs'.",
                    )
                )
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and len(operator.inputs) == 3:
            largest = _largest_sum(model, graph, operator, kind)
            if largest >= INT32_LIMIT:
                found.append(
                    Finding(
                        name,
                        f"sums of products and bias of up to {largest:.3g}",
                        "TFLite's kernels add in int32 and wrap around: 254 steps off where it was measured.",
                        _SMALLEST_RANGE,
                    )
                )
    return found


def _largest_sum(model: Any, graph: Any, operator: Any, kind: str) -> float:
    """The largest magnitude that a convolution's int32 sum can reach."""
    weight, bias = (graph.tensors[index] for index in operator.inputs[1:3])
    values = np.frombuffer(bytes(model.buffers[weight.buffer].data), np.int8).reshape(weight.shape)
    axes = (0, 1, 2) if kind == "DEPTHWISE_CONV_2D" else (1, 2, 3)
    products = 128.0 * np.abs(values.astype(np.float64)).sum(axis=axes)
    offsets = np.abs(np.frombuffer(bytes(model.buffers[bias.buffer].data), np.int32).astype(np.float64))
    return float((products + offsets).max())
