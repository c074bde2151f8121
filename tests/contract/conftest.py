"""One case for each backend: real where its hardware is here, and with a fake at the SDK's boundary."""

from __future__ import annotations

import pytest

from edge import Artifact
from edge.backend import Backend, Session, backends

# Backend, and the fixture that puts its hardware there where it is absent.
CASES = [(name, None) for name in backends()] + [("litert", "fake_edgetpu"), ("tensorrt", "fake_tensorrt")]
OTHER_FILE = {
    "openvino": "model.tflite",
    "litert": "model.onnx",
    "onnx": "model.tflite",
    "tensorrt": "model.tflite",
}


class Case:
    """One backend with a small artifact for it."""

    def __init__(self, backend: Backend, target: str, make, device: str | None):
        self.backend, self.target, self.make, self.device = backend, target, make, device
        self.path = make(target, **({"compiled": True} if target == "edgetpu" else {}))

    @property
    def other_file(self) -> str:
        """A sound model file, of another backend."""
        return OTHER_FILE[self.backend.name]

    def load(self, path=None) -> Session:
        return self.backend.load(Artifact.open(path or self.path), self.device)

    def feed(self, frame) -> dict:
        from edge import preprocess

        spec = Artifact.open(self.path).input
        tiles, _ = preprocess.frame_to_tiles(frame, spec, preprocess.Framing("exact"))
        return {self.load_inputs[0].name: preprocess.encode(tiles[0], spec)}

    @property
    def load_inputs(self):
        with self.load() as session:
            return session.inputs


@pytest.fixture(params=CASES, ids=lambda case: case[0] + ("" if case[1] is None else "-" + case[1]))
def case(request, make_artifact):
    name, fake = request.param
    if fake is not None:
        if fake == "fake_tensorrt":
            pytest.importorskip("onnxruntime", reason="the fake TensorRT runs on onnxruntime")
        request.getfixturevalue(fake)
    backend = backends()[name]
    probe = backend.probe()
    if not probe.usable:
        reason = f"backend {name} is not usable here: {probe.reason}"
        if name in request.config.getoption("--require-backend"):
            pytest.fail(reason)
        pytest.skip(reason)
    if name not in OTHER_FILE:
        pytest.skip(f"tests/tiny.py has no model for backend {name}")
    return Case(
        backend,
        "edgetpu" if fake == "fake_edgetpu" else name,
        make_artifact,
        "edgetpu:0" if fake == "fake_edgetpu" else None,
    )
