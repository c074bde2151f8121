"""TensorRT: NVIDIA Jetson (and any NVIDIA GPU with TensorRT 8.5 or later)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.artifact import Artifact
from edge.backend import Backend, Probe, RanOn, Session, Tensors, TensorSpec, as_dtype, output_indices
from edge.backends._cuda import Cuda
from edge.backends._engine import engine, engine_file
from edge.errors import IncompatibleArtifactError, InputError


class TensorRt(Backend):
    """ONNX, built into an engine on the device at the first load, on `cuda:N`."""

    name = "tensorrt"
    sdk_modules = ("tensorrt",)
    # Not a pip extra: on a Jetson TensorRT belongs to JetPack; a wheel from elsewhere does not fit its CUDA.
    install = (
        "sudo apt-get install nvidia-jetpack python3-libnvinfer  "
        "(then make the environment with: python3 -m venv --system-site-packages)"
    )

    def _probe(self) -> Probe:
        trt = self.sdk()
        names = Cuda().device_names()
        devices = tuple(f"cuda:{index}" for index in range(len(names)))
        return Probe(True, f"ready: {', '.join(names)}", "tensorrt", str(trt.__version__), devices)

    def _load(self, artifact: Artifact, device: str | None) -> Session:
        trt = self.sdk()
        device = device or "cuda:0"
        kind, _, index = device.partition(":")
        if kind != "cuda" or (index and not index.isdigit()):
            raise InputError("unknown device for TensorRT", wanted="cuda:N", got=device)
        cuda = Cuda()
        names = cuda.device_names()
        gpu = int(index or 0)
        if gpu >= len(names):
            raise self.unavailable(f"there is no `{device}`", got=", ".join(names))
        cuda.select(gpu)
        logger = trt.Logger(trt.Logger.WARNING)
        runtime = trt.Runtime(logger)
        plan = engine(trt, logger, artifact, names[gpu])
        loaded = runtime.deserialize_cuda_engine(plan)
        if loaded is None:
            # A damaged cache must not keep the camera down for ever: build it again, once.
            engine_file(trt, artifact, names[gpu]).unlink(missing_ok=True)
            loaded = runtime.deserialize_cuda_engine(engine(trt, logger, artifact, names[gpu]))
        if loaded is None:
            raise IncompatibleArtifactError(
                f"TensorRT {trt.__version__} cannot load the engine that it built from {artifact.model_file}",
                next_step="run `edgeqc doctor`",
            )
        ran_on = RanOn(f"cuda:{gpu} ({names[gpu]})", "tensorrt", str(trt.__version__))
        return TensorRtSession(trt, cuda, gpu, (runtime, loaded), artifact, ran_on)


class TensorRtSession(Session):
    """One engine, one execution context, one stream; device and host buffers are allocated once."""

    def __init__(
        self, trt: Any, cuda: Cuda, gpu: int, loaded: tuple[Any, Any], artifact: Artifact, ran_on: RanOn
    ) -> None:
        self.ran_on = ran_on
        self._cuda, self._gpu = cuda, gpu
        self._loaded: Any = loaded  # the runtime must outlive its engine
        network = loaded[1]
        names = [network.get_tensor_name(index) for index in range(network.num_io_tensors)]
        fed = [name for name in names if network.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        given = [name for name in names if name not in fed]
        indices = output_indices([{name} for name in given], artifact)
        specs = {
            name: TensorSpec(
                name,
                tuple(network.get_tensor_shape(name)),
                as_dtype(trt.nptype(network.get_tensor_dtype(name))),
            )
            for name in names
        }
        self.inputs = tuple(specs[name] for name in fed)
        self.outputs = tuple(
            TensorSpec(key, specs[given[index]].shape, specs[given[index]].dtype)
            for key, index in indices.items()
        )
        self._context = network.create_execution_context()
        self._stream = cuda.stream()
        self._memory = {name: cuda.allocate(_size_bytes(spec)) for name, spec in specs.items()}
        for name, pointer in self._memory.items():
            self._context.set_tensor_address(name, int(pointer.value or 0))
        self._results = {
            key: (np.empty(specs[given[index]].shape, specs[given[index]].dtype), self._memory[given[index]])
            for key, index in indices.items()
        }

    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        self._cuda.select(self._gpu)  # the current device belongs to the thread, and this may be another one
        for name, array in feeds.items():
            self._cuda.to_device(self._memory[name], array, self._stream)
        if not self._context.execute_async_v3(int(self._stream.value or 0)):
            raise RuntimeError("execute_async_v3 returned false")
        for array, pointer in self._results.values():
            self._cuda.to_host(array, pointer, self._stream)
        self._cuda.synchronize(self._stream)
        return {key: array for key, (array, _) in self._results.items()}

    def _close(self) -> None:
        self._context = None
        self._loaded = None
        for pointer in self._memory.values():
            self._cuda.free(pointer)
        self._memory, self._results = {}, {}
        self._cuda.close_stream(self._stream)


def _size_bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
