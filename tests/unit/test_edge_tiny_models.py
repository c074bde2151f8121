"""The committed tiny models are what their generator writes."""

from __future__ import annotations

import pytest

import tiny


def test_onnx(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    assert (tiny.FILES / "model.onnx").read_bytes() == tiny.onnx_bytes()


@pytest.mark.parametrize(("name", "description"), [("model", "tiny"), ("edgetpu", "tiny edgetpu-custom-op")])
def test_tflite(name, description):
    pytest.importorskip("ai_edge_litert.schema_py_generated", reason="LiteRT's schema is not installed")
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    assert (tiny.FILES / f"{name}.tflite").read_bytes() == tiny.tflite_bytes(description)


def test_openvino(tmp_path):
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    if ov.get_version() < "2026":
        pytest.skip(
            "the files were written by OpenVINO 2026; another version may spell the same network otherwise"
        )
    tiny.openvino_files(tmp_path)
    for name in ("model.xml", "model.bin"):
        assert (tmp_path / name).read_bytes() == (tiny.FILES / name).read_bytes()
