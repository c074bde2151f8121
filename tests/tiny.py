"""The smallest network with the runtime's contract, written for each backend, and artifacts around it.

One convolution over 4 x 4 pixels looks for brightness: mask = 8 * mean(x) - 2 for x = (p - 128) / 128, on a
32 x 32 input; defect = the mask's maximum. Weights and int8 scales are powers of two, so every runtime gives
the same numbers. The files lie in tests/golden/tiny; `python tests/tiny.py` writes them again, and
tests/unit/test_edge_tiny_models.py compares.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edge import golden
from edge.artifact import GATE, GOLDEN, write_manifest
from edge.folders import write_json

FILES = Path(__file__).parent / "golden" / "tiny"
SIZE, CELLS = 32, 8
GAIN, BIAS = 8.0, -2.0
OUTPUT_SCALE = 1 / 16  # of the int8 files: -8 to 7.94 logits

_FLOAT = {"layout": "nchw", "file_dtype": "float32", "encoding": "centered_float"}
_INPUT = {
    "openvino": {"layout": "nchw", "file_dtype": "uint8", "encoding": "identity"},
    "litert": {"layout": "nhwc", "file_dtype": "int8", "encoding": "xor80"},
    "onnx": _FLOAT,
    "tensorrt": _FLOAT,
}
_MODEL_FILES = {
    "openvino": ("model.xml", "model.bin"),
    "litert": ("model.tflite",),
    "onnx": ("model.onnx",),
    "tensorrt": ("model.onnx",),
}
_STAND_IN = {
    "edgetpu": {"backend": "litert", "device": "cpu"},
    "tensorrt": {"backend": "onnx", "device": "cpu"},
}


def expected(frame: np.ndarray) -> tuple[float, np.ndarray]:
    """The network in numpy: defect logit and mask logits [8, 8] of a 32 x 32 grey frame."""
    x = (frame.astype(np.float64) - 128) / 128
    mask = GAIN * x.reshape(CELLS, 4, CELLS, 4).mean(axis=(1, 3)) + BIAS
    return float(mask.max()), mask


def frame(kind: str = "defective", height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A dark frame, with one bright square when `defective`."""
    pixels = np.full((height, width), 64, np.uint8)
    if kind == "defective":
        pixels[height // 4 : height // 2, width // 4 : width // 2] = 240
    return pixels


def noise(seed: int = 0, size: tuple[int, ...] = (SIZE, SIZE)) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def write_artifact(folder: Path, target: str, *, with_golden: bool = False, **changes: Any) -> Path:
    """Write an artifact for `target`: openvino, edgetpu, litert (on the CPU), tensorrt or onnx.

    Args:
        with_golden: record golden vectors (needs the backend, or its stand-in, to work here).
        changes: manifest fields instead of the ordinary ones.
    """
    backend = "litert" if target == "edgetpu" else target
    folder.mkdir(parents=True)
    for name in _MODEL_FILES[backend]:
        source = "edgetpu.tflite" if target == "edgetpu" and changes.get("compiled") else name
        shutil.copyfile(FILES / source, folder / name)
    changes.pop("compiled", None)
    write_json(folder / GATE, {"passed": True})
    facts: dict[str, Any] = {
        "name": f"tiny-{target}",
        "version": "1",
        "target": target,
        "backend": backend,
        "device": {"edgetpu": "edgetpu:0"}.get(target),
        "profile": {"name": "test"},
        "precision": "fp32" if target in ("openvino", "onnx") else "int8",
        "model": _MODEL_FILES[backend][0],
        "input": {"width": SIZE, "height": SIZE, "channels": 1, **_INPUT[backend]},
        "outputs": {"defect": {"name": "defect"}, "mask": {"name": "mask", "stride": 4}},
        "framing": {"mode": "resize", "overlap": 0},
        "labels": ["good", "defective"],
        "decision": {"threshold": 0.5, "rule": "f1", "miss_rate": 0.0, "confidence": 0.95, "n": 10},
        "mask_threshold": 0.0,
        "calibration": None,
        "reference": {"checkpoint_digest": "0" * 64},
        "golden": None,
        "gate": {"passed": True},
        "stand_in": _STAND_IN.get(target),
        "inference_precision": "f32",
        "latency_budget_ms": None,
        "memory_budget_bytes": None,
        **changes,
    }
    artifact = write_manifest(folder, facts)
    if with_golden:
        from edge.inspector import open_inspector

        with open_inspector(folder, stand_in=artifact.stand_in is not None) as inspector:
            golden.write(inspector, [frame("defective"), frame("good")], folder / GOLDEN)
            made_on = vars(inspector.session.ran_on)
        facts["golden"] = {"file": GOLDEN, "steps": 8, "absolute": 1e-3, "step": 1 / 16, "made_on": made_on}
        write_manifest(folder, facts)
    return folder


def onnx_bytes() -> bytes:
    """Explicit-QDQ ONNX, opset 17: input and weights int8, outputs float32."""
    import onnx
    from onnx import TensorProto, helper

    def scalar(name: str, value: float, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor(name, kind, [], [value])

    nodes = [
        helper.make_node("QuantizeLinear", ["input", "input_scale", "zero"], ["input_q"]),
        helper.make_node("DequantizeLinear", ["input_q", "input_scale", "zero"], ["input_dq"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "zero"], ["weight_dq"]),
        helper.make_node(
            "Conv", ["input_dq", "weight_dq", "bias"], ["mask"], kernel_shape=[4, 4], strides=[4, 4]
        ),
        helper.make_node("MaxPool", ["mask"], ["peak"], kernel_shape=[CELLS, CELLS]),
        helper.make_node("Reshape", ["peak", "flat"], ["defect"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("defect", TensorProto.FLOAT, [1, 1]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, CELLS, CELLS]),
        ],
        [
            scalar("input_scale", 1 / 128),
            scalar("weight_scale", GAIN / 16 / 64),
            scalar("zero", 0, TensorProto.INT8),
            helper.make_tensor("weight", TensorProto.INT8, [1, 1, 4, 4], [64] * 16),
            helper.make_tensor("bias", TensorProto.FLOAT, [1], [BIAS]),
            helper.make_tensor("flat", TensorProto.INT64, [2], [1, 1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def openvino_files(folder: Path) -> None:
    """`model.xml` and `model.bin`: uint8 in, the conversion in the graph."""
    import openvino as ov
    import openvino.opset13 as ops

    def named(name: str, node: Any) -> Any:
        """Names of our own: the SDK's count the nodes of the whole process."""
        node.set_friendly_name(name)
        return node

    def constant(name: str, value: Any, dtype: Any = np.float32) -> Any:
        return named(name, ops.constant(np.asarray(value, dtype)))

    pixels = named("input", ops.parameter([1, 1, SIZE, SIZE], np.uint8))
    real = named("real", ops.convert(pixels, "f32"))
    centered = named("centered", ops.subtract(real, constant("middle", 128)))
    x = named("x", ops.multiply(centered, constant("unit", 1 / 128)))
    weight = constant("weight", np.full((1, 1, 4, 4), GAIN / 16))
    sums = named("sums", ops.convolution(x, weight, [4, 4], [0, 0], [0, 0], [1, 1]))
    mask = named("mask", ops.add(sums, constant("bias", np.full((1, 1, 1, 1), BIAS))))
    pool = named("pool", ops.max_pool(mask, [CELLS, CELLS], [1, 1], [0, 0], [0, 0], [CELLS, CELLS]))
    defect = named("defect", ops.reshape(pool.output(0), constant("flat", [1, 1], np.int64), False))
    pixels.output(0).set_names({"input"})
    mask.output(0).set_names({"mask"})
    defect.output(0).set_names({"defect"})
    results = [named("defect_result", ops.result(defect)), named("mask_result", ops.result(mask))]
    model = ov.Model(results, [pixels], "tiny")
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    # The SDK's version is of no interest, and would make the bytes differ.
    text = (folder / "model.xml").read_text()
    start, end = text.rindex("<rt_info>"), text.rindex("</rt_info>") + len("</rt_info>")
    (folder / "model.xml").write_text(text[:start].rstrip() + text[end:])


def tflite_bytes(description: str = "tiny") -> bytes:
    """int8 TFLite, schema 3, built operation by operation."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    model, graph = s.ModelT(), s.SubGraphT()
    buffers = [s.BufferT()]

    def tensor(
        name: str,
        shape: list[int],
        scale: float | None,
        data: np.ndarray | None = None,
        kind: int = s.TensorType.INT8,
    ) -> int:
        t = s.TensorT()
        t.name, t.shape, t.type = name, shape, kind
        if scale is not None:
            t.quantization = s.QuantizationParametersT()
            t.quantization.scale, t.quantization.zeroPoint = [scale], [0]
        if data is not None:
            buffer = s.BufferT()
            buffer.data = list(data.tobytes())
            buffers.append(buffer)
            t.buffer = len(buffers) - 1
        graph.tensors.append(t)
        return len(graph.tensors) - 1

    def operator(code: int, inputs: list[int], outputs: list[int], kind: int, options: Any) -> None:
        entry, op = s.OperatorCodeT(), s.OperatorT()
        entry.builtinCode = entry.deprecatedBuiltinCode = code
        entry.version = {s.BuiltinOperator.CONV_2D: 3, s.BuiltinOperator.MAX_POOL_2D: 2}.get(code, 1)
        model.operatorCodes.append(entry)
        op.opcodeIndex, op.inputs, op.outputs = len(model.operatorCodes) - 1, inputs, outputs
        op.builtinOptionsType, op.builtinOptions = kind, options
        graph.operators.append(op)

    graph.tensors, graph.operators, model.operatorCodes = [], [], []
    weight_scale = GAIN / 16 / 64
    pixels = tensor("input", [1, SIZE, SIZE, 1], 1 / 128)
    weight = tensor("weight", [1, 4, 4, 1], weight_scale, np.full((1, 4, 4, 1), 64, np.int8))
    bias_scale = weight_scale / 128
    bias = tensor("bias", [1], bias_scale, np.array([round(BIAS / bias_scale)], np.int32), s.TensorType.INT32)
    mask = tensor("mask", [1, CELLS, CELLS, 1], OUTPUT_SCALE)
    peak = tensor("peak", [1, 1, 1, 1], OUTPUT_SCALE)
    flat = tensor("flat", [2], None, np.array([1, 1], np.int32), s.TensorType.INT32)
    defect = tensor("defect", [1, 1], OUTPUT_SCALE)

    conv = s.Conv2DOptionsT()
    conv.strideW = conv.strideH = 4
    conv.padding = s.Padding.VALID
    operator(s.BuiltinOperator.CONV_2D, [pixels, weight, bias], [mask], s.BuiltinOptions.Conv2DOptions, conv)
    pool = s.Pool2DOptionsT()
    pool.strideW = pool.strideH = pool.filterWidth = pool.filterHeight = CELLS
    pool.padding = s.Padding.VALID
    operator(s.BuiltinOperator.MAX_POOL_2D, [mask], [peak], s.BuiltinOptions.Pool2DOptions, pool)
    reshape = s.ReshapeOptionsT()
    reshape.newShape = [1, 1]
    operator(s.BuiltinOperator.RESHAPE, [peak, flat], [defect], s.BuiltinOptions.ReshapeOptions, reshape)

    graph.inputs, graph.outputs, graph.name = [pixels], [defect, mask], "main"
    model.version, model.subgraphs, model.buffers = 3, [graph], buffers
    model.description = description
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def write_models(folder: Path) -> None:
    """Write every model file into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(onnx_bytes())
    (folder / "model.tflite").write_bytes(tflite_bytes())
    # The Edge TPU compiler's output is known by its custom operation's name; the fake delegate runs the rest.
    (folder / "edgetpu.tflite").write_bytes(tflite_bytes("tiny edgetpu-custom-op"))
    openvino_files(folder)


if __name__ == "__main__":
    write_models(FILES)
    sys.stdout.write("".join(f"{file.name} {file.stat().st_size}\n" for file in sorted(FILES.iterdir())))
