"""A TFLite file as the lint sees it: operations and their tensors, checked so that no rule can stumble."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from edge.errors import BackendUnavailableError, InputError
from targets.errors import UnsupportedOpError
from targets.tflite_file import read

COMPILED = "edgetpu-custom-op"


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes:
        index: in the graph.
        shape: as in the file; a side below 0 is known at run time only.
        dtype: TFLite's name, e.g. `INT8`.
        scaled: it has a quantization scale.
        computed: an operation or the caller makes it; otherwise it is a constant or a state.
        state: it keeps its value between two runs.
        data: the constant's bytes, None where there are none inside the file.
        outside: the constant lies behind the flatbuffer, where a compiler of TensorFlow 2.5's age sees nothing.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    scaled: bool
    computed: bool
    state: bool = False
    data: bytes | None = None
    outside: bool = False
    zero_point: int = 0

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)

    @property
    def is_constant(self) -> bool:
        """Its value is in the file."""
        return not self.computed and not self.state and (self.data is not None or self.elements == 0)

    @property
    def is_eight_bit(self) -> bool:
        return self.dtype in ("INT8", "UINT8")

    def integers(self) -> tuple[int, ...]:
        """The values of an INT32 constant; empty when it is none."""
        if self.data is None or self.dtype != "INT32":
            return ()
        return struct.unpack(f"<{len(self.data) // 4}i", self.data[: len(self.data) // 4 * 4])


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        index: in the order in which the graph runs.
        name: TFLite's name, or the custom operation's own.
        inputs: operands by position, None where an optional one is left out.
        options: fields of its options, e.g. `dilationWFactor`.
    """

    index: int
    name: str
    version: int
    custom: bool
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """The inputs that are there."""
        return tuple(tensor for tensor in self.inputs if tensor is not None)

    @property
    def activations(self) -> tuple[Tensor, ...]:
        """What is computed: inputs and outputs without constants and states."""
        return (*(tensor for tensor in self.operands if tensor.computed), *self.outputs)

    def operand(self, position: int) -> Tensor | None:
        """The input at `position`, None where there is none."""
        return self.inputs[position] if position < len(self.inputs) else None


@dataclass(frozen=True)
class Graph:
    """The main graph of a file; `others` are the operations of its further graphs, by name."""

    operations: tuple[Operation, ...]
    others: tuple[str, ...] = ()


def read_graph(path: Path) -> Graph:
    """Read a TFLite file that the Edge TPU compiler has not seen yet.

    Raises:
        InputError: no such file, no TFLite file, a damaged one, one without operations, one that is compiled
            already, or one whose activations are not quantized.
        BackendUnavailableError: the schema's package is missing.
    """
    try:
        payload = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path} cannot be read", wanted="a .tflite file", got=exc.strerror) from exc
    return parse_graph(payload, str(path))


def parse_graph(payload: bytes, name: str = "the file") -> Graph:
    """`read_graph` of bytes; `name` is for messages."""
    try:
        model = read(payload)
        graph = _Reader(model).graph()
    except UnsupportedOpError as exc:
        raise InputError(f"{name} is no TFLite file", wanted=exc.wanted, got=exc.got) from exc
    except ImportError as exc:
        raise BackendUnavailableError(
            "reading a TFLite file needs ai-edge-litert", next_step='pip install "edgeqc[litert]"'
        ) from exc
    except (struct.error, IndexError, TypeError, AttributeError, ValueError, OverflowError, KeyError) as exc:
        # What the generated reader raises when an offset points outside of the file.
        raise InputError(
            f"{name} is a damaged TFLite file", got=f"{type(exc).__name__}: {exc}", next_step="write it again"
        ) from exc
    if not graph.operations:
        raise InputError(f"{name} holds no operation", wanted="a network")
    if any(operation.name == COMPILED for operation in graph.operations):
        raise InputError(
            f"{name} is compiled already",
            wanted="the file that the Edge TPU compiler is given",
            got=f"operation {COMPILED}",
        )
    if not any(tensor.is_eight_bit for op in graph.operations for tensor in op.activations):
        found = sorted({tensor.dtype for op in graph.operations for tensor in op.activations})
        raise InputError(
            f"{name} is not quantized: nothing of it would run on the Edge TPU",
            wanted="activations in int8 or uint8",
            got=", ".join(found) or "no activation",
            next_step="export it with `edgeqc export --target edgetpu`, or quantize it fully to int8",
        )
    return graph


class _Reader:
    """From the schema's object API (`ModelT`)."""

    def __init__(self, model: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.model = model
        self.builtins = _names(schema.BuiltinOperator)
        self.types = _names(schema.TensorType)

    def graph(self) -> Graph:
        graphs = self.model.subgraphs or []
        if not graphs:
            return Graph(())
        others = tuple(self._code(op)[0] for graph in graphs[1:] for op in _listed(graph.operators))
        return Graph(self._operations(graphs[0]), others)

    def _operations(self, graph: Any) -> tuple[Operation, ...]:
        found = _listed(graph.operators)
        computed = {index for op in found for index in _listed(op.outputs)} | set(_listed(graph.inputs))
        tensors = [
            self._tensor(index, tensor, index in computed)
            for index, tensor in enumerate(_listed(graph.tensors))
        ]

        def pick(index: int) -> Tensor:
            if not 0 <= index < len(tensors):
                raise IndexError(f"tensor {index} of {len(tensors)}")
            return tensors[index]

        operations = []
        for number, op in enumerate(found):
            name, version, custom = self._code(op)
            inputs = tuple(None if index == -1 else pick(index) for index in _listed(op.inputs))
            outputs = tuple(pick(index) for index in _listed(op.outputs) if index != -1)
            if not outputs:
                raise ValueError(f"operation {number} has no output")
            options = vars(op.builtinOptions) if op.builtinOptions is not None else {}
            operations.append(Operation(number, name, version, custom, inputs, outputs, options))
        return tuple(operations)

    def _code(self, op: Any) -> tuple[str, int, bool]:
        """Name, version, and whether it is a custom operation."""
        if not 0 <= op.opcodeIndex < len(self.model.operatorCodes):
            raise IndexError(f"operator code {op.opcodeIndex} of {len(self.model.operatorCodes)}")
        code = self.model.operatorCodes[op.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = self.builtins.get(builtin, f"BUILTIN_{builtin}")
        if name != "CUSTOM":
            return name, int(code.version), False
        return (code.customCode or b"CUSTOM").decode("utf-8", "replace"), int(code.version), True

    def _tensor(self, index: int, tensor: Any, computed: bool) -> Tensor:
        buffers = _listed(self.model.buffers)
        if not 0 <= tensor.buffer < len(buffers):
            raise IndexError(f"buffer {tensor.buffer} of {len(buffers)}")
        buffer = buffers[tensor.buffer]
        held = _listed(buffer.data)
        quantization = tensor.quantization
        scales = _listed(quantization.scale) if quantization is not None else []
        zeros = _listed(quantization.zeroPoint) if quantization is not None else []
        return Tensor(
            index=index,
            shape=tuple(int(side) for side in _listed(tensor.shape)),
            dtype=self.types[tensor.type],
            scaled=len(scales) > 0,
            computed=computed,
            state=bool(tensor.isVariable),
            data=bytes(bytearray(held)) if len(held) and not computed else None,
            outside=getattr(buffer, "offset", 0) > 1,
            zero_point=int(zeros[0]) if len(zeros) else 0,
        )


def is_builtin(name: str) -> bool:
    """Whether `name` is one of TFLite's operations and no custom one."""
    from ai_edge_litert import schema_py_generated as schema

    return isinstance(getattr(schema.BuiltinOperator, name, None), int)


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _listed(values: Any) -> Any:
    """The schema's object API has None for an empty vector."""
    return [] if values is None else values
