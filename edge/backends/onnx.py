"""onnxruntime: plain and QDQ ONNX on the host; the stand-in for TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edge.artifact import Artifact
from edge.backend import Backend, Probe, RanOn, Session, Tensors, TensorSpec, output_indices
from edge.errors import IncompatibleArtifactError, InputError

# Device name to onnxruntime's execution provider.
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(float16)": "float16",
}


class Onnx(Backend):
    """An ONNX file on `cpu` or `cuda:N`."""

    name = "onnx"
    extra = "onnx"
    sdk_modules = ("onnxruntime",)

    def _probe(self) -> Probe:
        ort = self.sdk()
        available = ort.get_available_providers()
        devices = tuple(device for device, provider in _PROVIDERS.items() if provider in available)
        return Probe(
            bool(devices), "ready" if devices else "no device", "onnxruntime", ort.__version__, devices
        )

    def _load(self, artifact: Artifact, device: str | None) -> Session:
        ort = self.sdk()
        device = device or "cpu"
        kind, _, index = device.partition(":")
        if kind not in _PROVIDERS or (index and not index.isdigit()):
            raise InputError("unknown device for onnxruntime", wanted="cpu or cuda:N", got=device)
        provider = _PROVIDERS[kind]
        missing = self.unavailable(
            f"this onnxruntime has no `{device}`",
            got=", ".join(ort.get_available_providers()),
            fix="pip install onnxruntime-gpu, or give --device cpu",
        )
        if provider not in ort.get_available_providers():
            raise missing
        options = ort.SessionOptions()
        options.log_severity_level = 3
        chosen: Any = provider
        if kind == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            # TF32 keeps ten bits of a float32's mantissa: enough to flip a verdict near the threshold.
            chosen = (provider, {"device_id": int(index or 0), "use_tf32": 0})
        loaded = ort.InferenceSession(str(artifact.model_file), options, providers=[chosen])
        if provider not in loaded.get_providers():  # onnxruntime falls back with no more than a warning
            raise missing
        loaded.disable_fallback()
        return OnnxSession(loaded, artifact, RanOn(device, "onnxruntime", ort.__version__))


class OnnxSession(Session):
    """One InferenceSession."""

    def __init__(self, loaded: Any, artifact: Artifact, ran_on: RanOn) -> None:
        self.ran_on = ran_on
        found = loaded.get_outputs()
        indices = output_indices([{output.name} for output in found], artifact)
        self.inputs = tuple(_spec(tensor.name, tensor, artifact) for tensor in loaded.get_inputs())
        self.outputs = tuple(_spec(name, found[index], artifact) for name, index in indices.items())
        self._loaded = loaded
        self._names = list(indices)
        self._files_names = [found[index].name for index in indices.values()]

    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        return dict(zip(self._names, self._loaded.run(self._files_names, feeds)))

    def _close(self) -> None:
        del self._loaded


def _spec(name: str, tensor: Any, artifact: Artifact) -> TensorSpec:
    if tensor.type not in _DTYPES or not all(isinstance(size, int) for size in tensor.shape):
        raise IncompatibleArtifactError(
            f"{artifact.model_file} has a tensor of no fixed shape or unknown type",
            wanted="fixed shapes, batch 1",
            got=f"{tensor.name}: {tensor.type} {tensor.shape}",
            next_step="export the artifact again",
        )
    return TensorSpec(name, tuple(tensor.shape), _DTYPES[tensor.type])
