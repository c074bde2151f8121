"""Where OpenVINO would not give the grid's integers by itself, and what makes it: evidence in the real runtime."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
pytest.importorskip("onnx")
pytest.importorskip("openvino")
ort = pytest.importorskip("onnxruntime")
nn = torch.nn

import openvino_answers  # noqa: E402
from edge.preprocess import InputSpec  # noqa: E402
from quantize.recipe import NARROW_WEIGHT_LEVELS, GridRecipe  # noqa: E402
from targets.lowering import Network  # noqa: E402
from targets.onnx_graph import onnx_model  # noqa: E402
from targets.openvino import keep_sums_apart  # noqa: E402

SIDE = 32


class _Residual(nn.Module):
    """Convolutions that sums read, one of them clamped."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.lateral = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 64, 1), nn.ReLU6(), nn.Conv2d(64, 16, 1)) for _ in range(3)
        )
        self.mask = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        first = x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        x = x + nn.functional.relu6(self.lateral(first))
        mask = self.mask(x)
        return mask.mean((2, 3), keepdim=True).flatten(1), mask


def _network(recipe):
    coarse = np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 1), np.uint8)
    return Network(_Residual().eval(), InputSpec(SIDE, SIDE, 1), coarse, recipe=recipe)


def _answers(model, folder, instructions=None):
    """OpenVINO's answers, by output, to all frames; `instructions` as oneDNN names the most that it may use."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {})}
    words = [sys.executable, str(Path(openvino_answers.__file__)), "model.onnx", "frames.npy", "out.npz"]
    subprocess.run(words, cwd=folder, env=environment, check=True)
    return dict(np.load(folder / "out.npz"))


def _onnxruntime(model, frames):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = [session.run(["defect", "mask"], {"input": frame[None]}) for frame in frames]
    return {name: np.concatenate(found) for name, found in zip(("defect", "mask"), zip(*answers))}


def _frames(network, folder):
    frames = (network.tiles.transpose(0, 3, 1, 2).astype(np.float32) - 128) / 128
    np.save(folder / "frames.npy", frames)
    return frames


def _share_that_differs(network, found, expected):
    step = dict(zip(("defect", "mask"), network.grid.output_scales()))["mask"]
    return float((np.abs(found["mask"] - expected["mask"]) > step / 2).mean())


def test_openvino_drops_a_rounding_before_a_sum_but_not_behind_a_clamp(tmp_path):
    """Fails when OpenVINO mends it: then `keep_sums_apart` can go."""
    network = _network(GridRecipe())
    model, frames = onnx_model(network, "int8"), _frames(network, tmp_path)
    expected = _onnxruntime(model, frames)
    assert _share_that_differs(network, _answers(model, tmp_path), expected) > 0.05
    keep_sums_apart(model)
    assert sum(node.op_type == "Clip" and "before" in node.name for node in model.graph.node) == 5
    found = _answers(model, tmp_path)
    for name in ("defect", "mask"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_a_processor_without_vnni_needs_weights_of_seven_bits(tmp_path):
    """Fails when oneDNN mends it: then `int8_saturates` and its profile can go."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("saturation is that of x86-64 kernels")
    differs = {}
    for recipe in (GridRecipe(), GridRecipe(weight_levels=NARROW_WEIGHT_LEVELS)):
        network = _network(recipe)
        model, frames = onnx_model(network, "int8"), _frames(network, tmp_path)
        keep_sums_apart(model)
        found = _answers(model, tmp_path, "AVX2")
        differs[recipe.weight_levels] = _share_that_differs(network, found, _onnxruntime(model, frames))
        weights = [getattr(network.grid.folded, node.args[0].target) for node in _weights(network)]
        assert max(int(weight.abs().max()) for weight in weights) <= recipe.weight_levels
    assert differs[NARROW_WEIGHT_LEVELS] == 0 < differs[127]


def _weights(network):
    return [node for node in network.grid.folded.graph.nodes if "dequantize_per_channel" in str(node.target)]
