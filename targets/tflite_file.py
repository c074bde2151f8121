"""Reading and checking a TFLite flatbuffer, with the schema that comes with `ai_edge_litert`."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from targets.errors import UnsupportedOpError

# Newest version of each operation that an interpreter of the Edge TPU compiler's age knows (seen to run in
# tflite-runtime 2.7.0), for the operations that our networks may become.
NEWEST_VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MUL": 2,
    "PAD": 2,
    "QUANTIZE": 2,
    "RESHAPE": 1,
    "RESIZE_BILINEAR": 3,
    "RESIZE_NEAREST_NEIGHBOR": 3,
}
# Input and output must have one scale, or TFLite's kernels answer wrongly without a word.
_SAME_SCALE = (
    "AVERAGE_POOL_2D",
    "CONCATENATION",
    "MAX_POOL_2D",
    "PAD",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
)
METADATA = "metadata.json"


def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def read(payload: bytes) -> Any:
    """Unpack a flatbuffer into the schema's object API (`ModelT`).

    Raises:
        UnsupportedOpError: it is none.
    """
    schema = _schema()
    if payload[4:8] != b"TFL3":
        raise UnsupportedOpError("this is no TFLite file", wanted="file identifier TFL3", got=payload[4:8])
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(payload))


def operations(model: Any) -> list[str]:
    """Names of the operations in the order in which they run."""
    known = _names(_schema().BuiltinOperator)
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return [known.get(codes[operator.opcodeIndex], "?") for operator in model.subgraphs[0].operators]


def check_operations(path: Path) -> dict[str, int]:
    """Refuse a file that the Edge TPU, or an interpreter of its compiler's age, would not run in int8.

    Returns:
        operation -> count.

    Raises:
        UnsupportedOpError: every violation with its reason.
    """
    payload = path.read_bytes()
    model = read(payload)
    found = violations(model)
    if found:
        raise UnsupportedOpError(
            f"{path} is not an int8 network for the Edge TPU",
            wanted="int8 in and out, int8 operations of TensorFlow 2.5's age, constants inside the file",
            got="; ".join(found[:12]) + (f"; and {len(found) - 12} more" if len(found) > 12 else ""),
        )
    return dict(sorted(Counter(operations(model)).items()))


def violations(model: Any) -> list[str]:
    """Why the file would not run as one int8 network; empty when it would."""
    schema = _schema()
    types = _names(schema.TensorType)
    if len(model.subgraphs) != 1:
        return [f"{len(model.subgraphs)} sub-graphs"]
    graph = model.subgraphs[0]
    found = []
    for kind, indices in (("input", graph.inputs), ("output", graph.outputs)):
        for index in indices:
            if types[graph.tensors[index].type] != "INT8":
                found.append(f"{kind} is {types[graph.tensors[index].type]}")
    for index, buffer in enumerate(model.buffers):
        if getattr(buffer, "offset", 0) > 1:
            found.append(f"buffer {index} lies outside of the flatbuffer, where old interpreters see nothing")
    produced = {index for operator in graph.operators for index in operator.outputs} | set(graph.inputs)
    for number, (operator, name) in enumerate(zip(graph.operators, operations(model), strict=True)):
        where = f"operation {number} ({name})"
        version = model.operatorCodes[operator.opcodeIndex].version
        newest = NEWEST_VERSIONS.get(name)
        if newest is None:
            found.append(f"{where} is not one of {', '.join(NEWEST_VERSIONS)}")
        elif version > newest:
            found.append(f"{where} has version {version}, newer than {newest}")
        tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
        for tensor in tensors:
            if types[tensor.type] not in ("INT8", "INT32"):
                found.append(f"{where} touches a tensor of {types[tensor.type]}")
        activations = [
            graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index in produced
        ]
        scales = {_scale(tensor) for tensor in activations}
        if any(types[tensor.type] != "INT8" for tensor in activations) or None in scales:
            found.append(f"{where} works on a tensor that is not quantized to int8")
        elif name in _SAME_SCALE and len(scales) > 1:
            found.append(f"{where} changes the scale, which its kernel ignores")
    return found


def _scale(tensor: Any) -> tuple[float, int] | None:
    """Scale and zero point of an activation; None when it has not exactly one."""
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
        return None
    return float(quantization.scale[0]), int(quantization.zeroPoint[0])


def append_metadata(path: Path, facts: Mapping[str, Any]) -> None:
    """Append `metadata.json` as a ZIP archive behind the flatbuffer, where TFLite's tools look for files.

    The same facts give the same bytes.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as stream:
        entry = zipfile.ZipInfo(METADATA, (1980, 1, 1, 0, 0, 0))
        stream.writestr(entry, json.dumps(facts, indent=1, sort_keys=True))
    path.write_bytes(path.read_bytes() + archive.getvalue())


def read_metadata(path: Path) -> dict[str, Any]:
    """What `append_metadata` wrote."""
    with zipfile.ZipFile(path) as stream:
        facts: dict[str, Any] = json.loads(stream.read(METADATA))
    return facts
