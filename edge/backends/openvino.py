"""OpenVINO: Intel processors, and any other device that its plugins list."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.artifact import Artifact
from edge.backend import Backend, Probe, RanOn, Session, Tensors, TensorSpec, output_indices
from edge.backends._cache import cache_folder


class OpenVino(Backend):
    """OpenVINO IR (`model.xml` with `model.bin`) on `CPU`, `GPU.0`, `NPU`, ..."""

    name = "openvino"
    extra = "openvino"
    sdk_modules = ("openvino",)

    def sdk(self) -> Any:
        """Import OpenVINO without its telemetry.

        `import openvino` reports itself to Intel's analytics from a forked process. A camera on a production
        line calls nobody; OpenVINO has a stub of its own for when the telemetry package is not there.
        """
        if "openvino" in sys.modules or "openvino_telemetry" in sys.modules:
            return super().sdk()
        blocked: Any = None  # what makes Python say ModuleNotFoundError
        sys.modules["openvino_telemetry"] = blocked
        try:
            return super().sdk()
        finally:
            del sys.modules["openvino_telemetry"]

    def _probe(self) -> Probe:
        ov = self.sdk()
        devices = tuple(ov.Core().available_devices)
        return Probe(
            bool(devices), "ready" if devices else "no device", "openvino", ov.get_version(), devices
        )

    def _load(self, artifact: Artifact, device: str | None) -> Session:
        ov = self.sdk()
        core = ov.Core()
        device = device or "CPU"
        devices = core.available_devices
        if device not in devices and device.split(".")[0] not in {name.split(".")[0] for name in devices}:
            raise self.unavailable(
                f"there is no device `{device}`",
                got=", ".join(devices) or "no device",
                fix="install the device's driver, or give --device one of those",
            )
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Without this a processor with AVX512-BF16 or AMX runs "full precision" in bf16.
            "INFERENCE_PRECISION_HINT": artifact.manifest.get("inference_precision") or "f32",
        }
        if device != "CPU":
            # A GPU or NPU compiles for many seconds; a CPU does not, and keeps no cache.
            settings["CACHE_DIR"] = str(cache_folder("openvino"))
        compiled = core.compile_model(core.read_model(artifact.model_file), device, settings)
        where = device if device == "CPU" else f"{device} ({core.get_property(device, 'FULL_DEVICE_NAME')})"
        return OpenVinoSession(compiled, artifact, RanOn(where, "openvino", ov.get_version()))


class OpenVinoSession(Session):
    """One infer request with its own tensors; nothing of the graph is walked after loading."""

    def __init__(self, compiled: Any, artifact: Artifact, ran_on: RanOn) -> None:
        self.ran_on = ran_on
        indices = output_indices([port.get_names() for port in compiled.outputs], artifact)
        self.inputs = tuple(
            TensorSpec(port.get_any_name(), tuple(port.shape), port.get_element_type().to_dtype().name)
            for port in compiled.inputs
        )
        self.outputs = tuple(
            TensorSpec(name, tuple(port.shape), port.get_element_type().to_dtype().name)
            for name, port in ((name, compiled.outputs[index]) for name, index in indices.items())
        )
        self._request = compiled.create_infer_request()
        self._compiled = compiled
        # The request's own buffers, at the same address for good: one copy in, none out.
        self._feeds = [
            (spec.name, self._request.get_input_tensor(i).data) for i, spec in enumerate(self.inputs)
        ]
        self._results = {name: self._request.get_output_tensor(index).data for name, index in indices.items()}

    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        for name, buffer in self._feeds:
            np.copyto(buffer, feeds[name])
        # Not `infer`: that builds a dictionary of ports for each call.
        self._request.start_async()
        self._request.wait()
        return dict(self._results)

    def _close(self) -> None:
        self._feeds, self._results = [], {}
        del self._request, self._compiled
