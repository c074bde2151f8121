"""LiteRT (TensorFlow Lite): int8 `.tflite` on the CPU or on a Coral Edge TPU through its delegate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module, metadata
from typing import Any

import numpy.typing as npt

from edge.artifact import Artifact
from edge.backend import Backend, Probe, RanOn, Session, Tensors, TensorSpec, as_dtype, output_indices
from edge.backends._edgetpu import (
    CUSTOM_OP,
    DELEGATE_LIBRARY,
    GOOGLE_PYCORAL,
    INSTALL,
    edge_tpus,
    installed_pycoral,
)
from edge.errors import IncompatibleArtifactError, InputError

_MAX_THREADS = 4


class LiteRt(Backend):
    """A `.tflite` file on `cpu` or `edgetpu:N` (N counts from 0, USB and PCIe alike)."""

    name = "litert"
    extra = "litert"
    sdk_modules = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")

    def sdk(self) -> Any:
        """The interpreter's module; Google's PyCoral brings one where a device already has that."""
        try:
            return super().sdk()
        except ImportError:
            if installed_pycoral() != GOOGLE_PYCORAL:
                raise
            return import_module("pycoral.utils.edgetpu").tflite

    def _probe(self) -> Probe:
        sdk = self.sdk()
        return Probe(True, "ready", _sdk_name(sdk), _sdk_version(sdk), ("cpu", *edge_tpus()))

    def _load(self, artifact: Artifact, device: str | None) -> Session:
        sdk = self.sdk()
        device = device or "cpu"
        delegates = []
        if device.startswith("edgetpu"):
            delegates.append(self._delegate(sdk, artifact, device))
        elif device != "cpu":
            raise InputError("unknown device for LiteRT", wanted="cpu or edgetpu:N", got=device)
        elif CUSTOM_OP in artifact.model_file.read_bytes():
            raise IncompatibleArtifactError(
                f"{artifact.model_file} is compiled for the Edge TPU and does not run on the CPU",
                next_step="give --device edgetpu:0, or export without the Edge TPU compiler",
            )
        threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MAX_THREADS)
        interpreter = sdk.Interpreter(
            model_path=str(artifact.model_file), experimental_delegates=delegates, num_threads=threads
        )
        interpreter.allocate_tensors()
        return LiteRtSession(interpreter, artifact, RanOn(device, _sdk_name(sdk), _sdk_version(sdk)))

    def _delegate(self, sdk: Any, artifact: Artifact, device: str) -> Any:
        """Open the Edge TPU. The CPU never takes its place."""
        _, _, index = device.partition(":")
        if device != "edgetpu" and not index.isdigit():
            raise InputError("unknown Edge TPU", wanted="edgetpu:N", got=device)
        found = edge_tpus()
        device = f"edgetpu:{index or 0}"
        if device not in found:
            raise self.unavailable(
                f"there is no `{device}`",
                got=", ".join(found) or "no Edge TPU, or no libedgetpu",
                fix=INSTALL,
            )
        try:
            delegate = sdk.load_delegate(DELEGATE_LIBRARY, {"device": f":{index or 0}"})
        except (OSError, ValueError, RuntimeError) as exc:
            raise self.unavailable(
                f"`{device}` is there but cannot be opened",
                got=exc,
                fix="end the program that uses it, or unplug it and plug it in again",
            ) from exc
        if CUSTOM_OP not in artifact.model_file.read_bytes():
            # The delegate would take no operation and the interpreter would run all of them on the CPU.
            raise IncompatibleArtifactError(
                f"{artifact.model_file} was not compiled for the Edge TPU",
                wanted="a file that the Edge TPU compiler wrote",
                got="plain int8 TFLite",
                next_step="export where `edgetpu_compiler` is installed (x86-64 Linux)",
            )
        return delegate


class LiteRtSession(Session):
    """One interpreter."""

    def __init__(self, interpreter: Any, artifact: Artifact, ran_on: RanOn) -> None:
        self.ran_on = ran_on
        found = interpreter.get_output_details()
        indices = output_indices([{detail["name"]} for detail in found], artifact)
        inputs = interpreter.get_input_details()
        self.inputs = tuple(_spec(detail["name"], detail) for detail in inputs)
        self.outputs = tuple(_spec(name, found[index]) for name, index in indices.items())
        self._interpreter = interpreter
        self._feeds = [(detail["name"], detail["index"]) for detail in inputs]
        self._results = [(name, found[index]["index"]) for name, index in indices.items()]

    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        for name, index in self._feeds:
            self._interpreter.set_tensor(index, feeds[name])
        self._interpreter.invoke()
        # Copies of a few KiB; a view into the interpreter would forbid `invoke` while anybody holds it.
        return {name: self._interpreter.get_tensor(index) for name, index in self._results}

    def _close(self) -> None:
        del self._interpreter


def _spec(name: str, detail: Mapping[str, Any]) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    quantized = bool(scale)  # LiteRT says (0.0, 0) for float tensors
    return TensorSpec(
        name,
        tuple(int(size) for size in detail["shape"]),
        as_dtype(detail["dtype"]),
        float(scale) if quantized else None,
        int(zero_point) if quantized else None,
    )


def _sdk_name(sdk: Any) -> str:
    return str(sdk.__name__).split(".")[0].replace("_", "-")


def _sdk_version(sdk: Any) -> str:
    try:
        return metadata.version(_sdk_name(sdk))
    except metadata.PackageNotFoundError:  # a system package without metadata
        return str(getattr(import_module(sdk.__name__.split(".")[0]), "__version__", "unknown"))
