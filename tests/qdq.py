"""Small int8 graphs for tests of known faults: each operation between QuantizeLinear and DequantizeLinear, as on the
grid, and each known fault beside what is to be written in its place and beside what is right as it is.

`python tests/qdq.py` measures them in OpenVINO, for the processor instructions that `ONEDNN_MAX_CPU_ISA` allows, and
prints JSON. oneDNN reads that variable once, so every measurement is a process of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.artifact import write_manifest

SIZE = 32
STEP = 6 / 127
# Instructions of a processor without AMX. Such processors have VNNI since 2021, and most cameras' are of them: as wide
# as AVX2 on Intel's, as wide as AVX512 alone on some of AMD's.
_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = _CPUINFO.read_text() if _CPUINFO.is_file() else ""
WITHOUT_AMX = "AVX512_CORE_VNNI" if "avx512_vnni" in _FLAGS and "avx_vnni" not in _FLAGS else "AVX2_VNNI"
WITHOUT_VNNI = "AVX2"
# Two products of weights up to 63 and pixels fit into int16, which processors without VNNI add them in.
LARGEST_WEIGHT = 63


class Graph:
    """A Q/DQ graph under construction. Methods take and return the names of dequantized tensors."""

    def __init__(self, seed: int = 0, largest_weight: int = LARGEST_WEIGHT) -> None:
        self.random = np.random.default_rng(seed)
        self.largest_weight = largest_weight
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {"zero": np.array(0, np.int8)}
        self.outputs: list[str] = []
        self.pixels = self.quantize("input", 1 / 128)

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(
            helper.make_node(kind, list(inputs), [output], name=f"module/{output}/{kind}", **attributes)
        )
        return output

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants[name] = np.asarray(value, dtype)
        return name

    def quantize(self, tensor: str, step: float = STEP, name: str | None = None) -> str:
        self.constant(f"{tensor}/step", step)
        self.node("QuantizeLinear", [tensor, f"{tensor}/step", "zero"], f"{tensor}/int8")
        return self.node(
            "DequantizeLinear", [f"{tensor}/int8", f"{tensor}/step", "zero"], name or f"{tensor}/real"
        )

    def weight(self, name: str, values: np.ndarray) -> str:
        """Weights quantized by channel, up to `largest_weight`."""
        peaks = np.abs(values).reshape(len(values), -1).max(1)
        steps = peaks / self.largest_weight
        whole = np.rint(values / steps.reshape(-1, *[1] * (values.ndim - 1)))
        self.constant(f"{name}/whole", whole, np.int8)
        self.constant(f"{name}/steps", steps)
        self.constant(f"{name}/zeros", np.zeros(len(values)), np.int8)
        inputs = [f"{name}/whole", f"{name}/steps", f"{name}/zeros"]
        return self.node("DequantizeLinear", inputs, name, axis=0)

    def convolution(
        self,
        source: str,
        name: str,
        shape: Sequence[int],
        values: np.ndarray | None = None,
        **attributes: Any,
    ) -> str:
        """A convolution's raw output; weights are random unless given."""
        values = self.random.normal(size=shape) * 0.3 if values is None else values
        weight = self.weight(f"{name}/weight", values)
        return self.node("Conv", [source, weight], name, pads=[values.shape[2] // 2] * 4, **attributes)

    def relu6(self, tensor: str, name: str) -> str:
        bounds = [self.constant("lowest", 0.0), self.constant("highest", 6.0)]
        return self.node("Clip", [tensor, *bounds], name)

    def features(self, name: str, clamped: bool = True) -> str:
        """Eight quantized maps of the image, 0 to 6 when clamped."""
        raw = self.convolution(self.pixels, name, (8, 1, 3, 3))
        return self.quantize(self.relu6(raw, f"{name}/clamp") if clamped else raw)

    def maximum(self, source: str, name: str, kind: str) -> str:
        """The global maximum as [1, 8, 1, 1]: `ReduceMax`, `GlobalMaxPool`, or a `chain` of max pools."""
        if kind == "ReduceMax":
            axes = self.constant("axes", [2, 3], np.int64)
            return self.node("ReduceMax", [source, axes], name, keepdims=1)
        if kind == "GlobalMaxPool":
            return self.node("GlobalMaxPool", [source], name)
        half = self.node("MaxPool", [source], f"{name}/half", kernel_shape=[8, 8], strides=[8, 8])
        return self.node("MaxPool", [self.quantize(half)], name, kernel_shape=[4, 4], strides=[4, 4])

    def minimum(self, source: str, name: str, kind: str) -> str:
        """The global minimum: `ReduceMin`, or the maximum of the negated map in a `chain` of max pools, negated."""
        if kind == "ReduceMin":
            axes = self.constant("axes", [2, 3], np.int64)
            return self.node("ReduceMin", [source, axes], name, keepdims=1)
        minus = -np.ones((8, 1, 1, 1))
        turned = self.quantize(self.convolution(source, f"{name}/minus", (), minus, group=8))
        peak = self.quantize(self.maximum(turned, f"{name}/peak", "chain"))
        return self.convolution(peak, name, (), minus, group=8)

    def fully_connected(self, source: str, name: str, features: int) -> str:
        """Flatten and Gemm: one value."""
        flat = self.quantize(self.node("Flatten", [source], f"{name}/flat"))
        weight = self.weight(f"{name}/weight", self.random.normal(size=(1, features)) * 0.3)
        return self.node("Gemm", [flat, weight], name, transB=1)

    def flat(self, source: str, name: str) -> str:
        shape = self.constant(f"{name}/shape", [1, 1], np.int64)
        return self.node("Reshape", [self.quantize(source), shape], name)

    def score(self, source: str) -> None:
        """A second reader of `source`, a convolution, that makes the network's `defect`."""
        beside = self.quantize(self.convolution(source, "beside", (8, 8, 1, 1)))
        peak = self.quantize(self.maximum(beside, "beside/peak", "chain"))
        self.output(self.flat(self.convolution(peak, "score", (1, 8, 1, 1)), "logit"), "defect")

    def output(self, tensor: str, name: str, step: float = STEP) -> None:
        self.quantize(tensor, step, name)
        self.outputs.append(name)

    def mask(self, source: str) -> None:
        """A second reader of `source` that makes the network's `mask`."""
        self.output(self.convolution(source, "mask_logits", (1, 8, 1, 1)), "mask")

    def model(self) -> Any:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            self.nodes,
            "known",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, SIZE, SIZE])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model, full_check=True)
        return model


def reduce_max(kind: str = "ReduceMax", *, second_reader: bool = True) -> Any:
    """The known case in the grid's form: features -> {maximum -> Gemm, mask}. Another kind is the remedy."""
    graph = Graph()
    features = graph.features("features")
    peak = graph.quantize(graph.maximum(features, "peak", kind))
    graph.output(graph.fully_connected(peak, "logit", 8), "defect")
    graph.mask(features if second_reader else graph.features("others"))
    return graph.model()


def unquantized(kind: str = "ReduceMax") -> Any:
    """The known case as it was found: mean and maximum are joined before anything is quantized again."""
    graph = Graph()
    features, others = graph.features("features"), graph.features("others", clamped=False)
    axes = graph.constant("axes", [2, 3], np.int64)
    mean = graph.node("ReduceMean", [others, axes], "mean", keepdims=1)
    joined = graph.node("Concat", [mean, graph.maximum(features, "peak", kind)], "joined", axis=1)
    graph.output(graph.fully_connected(graph.quantize(joined), "logit", 16), "defect")
    graph.mask(features)
    return graph.model()


def residual(kind: str = "ReduceMax") -> Any:
    """A maximum that is right until it is tapped: the sum that reads it takes the shifted tensor as it is."""
    graph = Graph()
    features = graph.features("features")
    peak = graph.quantize(graph.maximum(features, "peak", kind))
    total = graph.quantize(graph.node("Add", [peak, features], "sum"))
    graph.output(graph.convolution(total, "mask_logits", (1, 8, 1, 1)), "mask")
    graph.score(features)
    return graph.model()


def saturating() -> Any:
    """Products that are right in int32 and in VNNI, and leave int16, in which older processors add two of them."""
    graph = Graph(largest_weight=127)
    bright = graph.convolution(graph.pixels, "bright", (), np.full((8, 1, 3, 3), 0.6))
    features = graph.quantize(graph.relu6(bright, "bright/clamp"))
    graph.output(graph.convolution(features, "mask_logits", (), np.full((1, 8, 1, 1), 0.1)), "mask")
    graph.score(features)
    return graph.model()


def reduce_min(kind: str = "ReduceMin", *, reader: str = "Conv") -> Any:
    graph = Graph()
    features = graph.features("features", clamped=False)
    least = graph.quantize(graph.minimum(features, "least", kind))
    if reader == "Conv":
        graph.output(graph.flat(graph.convolution(least, "score", (1, 8, 1, 1)), "logit"), "defect")
    else:
        graph.output(graph.fully_connected(least, "logit", 8), "defect")
    graph.mask(graph.features("others"))
    return graph.model()


def concatenation(kind: str = "Concat") -> Any:
    """Two maps put together before a convolution; the remedy: one convolution for each, and a sum."""
    graph = Graph()
    one, other = graph.features("one", clamped=False), graph.features("other", clamped=False)
    if kind == "Concat":
        joined = graph.quantize(graph.node("Concat", [one, other], "joined", axis=1))
        total = graph.convolution(joined, "mask_logits", (1, 16, 1, 1))
    else:
        parts = [
            graph.quantize(graph.convolution(source, f"of_{name}", (1, 8, 1, 1)))
            for name, source in (("one", one), ("other", other))
        ]
        total = graph.node("Add", parts, "mask_logits")
    graph.output(total, "mask")
    graph.score(graph.features("others"))
    return graph.model()


def joined_maxima() -> Any:
    """A concatenation that a Gemm reads."""
    graph = Graph()
    peaks = [
        graph.quantize(graph.maximum(graph.features(name, clamped=False), f"{name}/peak", "chain"))
        for name in ("one", "other")
    ]
    joined = graph.quantize(graph.node("Concat", peaks, "joined", axis=1))
    graph.output(graph.fully_connected(joined, "logit", 16), "defect")
    graph.mask(graph.features("others"))
    return graph.model()


def average_pool(
    kind: str = "AveragePool", *, second_reader: bool = True, padding: int = 1, counted: int = 1
) -> Any:
    """Neighbourhood means that count the padding; the remedy: a depthwise convolution of constant weights."""
    graph = Graph()
    features = graph.features("features")
    if kind == "AveragePool":
        window = {"kernel_shape": [3, 3], "pads": [padding] * 4, "count_include_pad": counted}
        means = graph.node("AveragePool", [features], "means", **window)
    else:
        means = graph.convolution(features, "means", (), np.full((8, 1, 3, 3), 1 / 9), group=8)
    graph.mask(graph.quantize(means))
    graph.score(features if second_reader else graph.features("others"))
    return graph.model()


# Operation of the fault -> (graph with the fault, graph with the remedy).
KNOWN_FAULTS = {
    "ReduceMax": (lambda: reduce_max("ReduceMax"), lambda: reduce_max("chain")),
    "GlobalMaxPool": (lambda: reduce_max("GlobalMaxPool"), lambda: reduce_max("chain")),
    "ReduceMin": (lambda: reduce_min("ReduceMin"), lambda: reduce_min("chain")),
    "Concat": (lambda: concatenation("Concat"), lambda: concatenation("sum")),
    "AveragePool": (lambda: average_pool("AveragePool"), lambda: average_pool("convolution")),
}
# The same operations, each the first word, where OpenVINO computes them rightly.
LET_THROUGH = {
    "ReduceMax": lambda: reduce_max("ReduceMax", second_reader=False),
    "GlobalMaxPool": lambda: reduce_max("GlobalMaxPool", second_reader=False),
    "ReduceMin": lambda: reduce_min(reader="Gemm"),
    "Concat": joined_maxima,
    "AveragePool": lambda: average_pool(second_reader=False),
    "AveragePool that does not count its padding": lambda: average_pool(counted=0),
    "AveragePool without padding": lambda: average_pool(padding=0),
}


def frames(count: int = 8) -> list[np.ndarray]:
    """Noise from faint to full contrast, [32, 32]."""
    random = np.random.default_rng(0)
    contrasts = np.linspace(0.3, 1, count)
    return [(128 + c * random.integers(-128, 128, (SIZE, SIZE))).astype(np.uint8) for c in contrasts]


def write_artifacts(model: Any, folder: Path, **changes: Any) -> list[Path]:
    """The graph as two artifacts of one grid, `openvino` and `onnx`; lint and gate are passed by."""
    import onnx

    from edge.backend import find_backend

    paths = [folder / "openvino", folder / "onnx"]
    for path in paths:
        path.mkdir(parents=True)
    onnx.save(model, paths[1] / "model.onnx")
    ov = find_backend("openvino").sdk()
    steps = ov.preprocess.PrePostProcessor(ov.Core().read_model(model.SerializeToString()))
    source = steps.input("input")
    source.tensor().set_element_type(ov.Type.u8)
    source.preprocess().convert_element_type(ov.Type.f32).mean(128.0).scale(128.0)
    ov.save_model(steps.build(), paths[0] / "model.xml", compress_to_fp16=False)
    for path, file, layout in (
        (paths[0], "model.xml", {"file_dtype": "uint8", "encoding": "identity"}),
        (paths[1], "model.onnx", {"file_dtype": "float32", "encoding": "centered_float"}),
    ):
        facts = {
            "name": "known",
            "version": "1",
            "target": path.name,
            "backend": path.name,
            "profile": {"name": "test"},
            "precision": "int8",
            "model": file,
            "input": {"width": SIZE, "height": SIZE, "channels": 1, "layout": "nchw", **layout},
            "outputs": {"defect": {"name": "defect"}, "mask": {"name": "mask", "stride": 1}},
            "framing": {"mode": "exact"},
            "labels": ["good", "defective"],
            "decision": {"threshold": 0.0},
            "mask_threshold": 0.0,
            "calibration": None,
            "reference": {},
            "golden": None,
            "gate": None,
        }
        write_manifest(path, {**facts, **changes})
    return paths


def departure(model: Any) -> float:
    """How far OpenVINO's outputs are from onnxruntime's without optimization, in steps, at most."""
    import onnxruntime as ort

    from edge.backend import find_backend

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    reference = ort.InferenceSession(model.SerializeToString(), options)
    core = find_backend("openvino").sdk().Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    far = 0.0
    for frame in frames():
        x = ((frame.astype(np.float32) - 128) / 128)[None, None]
        found = compiled({0: x})
        for name, right in zip(("defect", "mask"), reference.run(["defect", "mask"], {"input": x})):
            far = max(far, float(np.abs(found[name] - right).max()) / STEP)
    return far


if __name__ == "__main__":
    faults = {name: [departure(build()) for build in pair] for name, pair in KNOWN_FAULTS.items()}
    let_through = {name: departure(build()) for name, build in LET_THROUGH.items()}
    json.dump({"faults": faults, "let_through": let_through}, sys.stdout)
