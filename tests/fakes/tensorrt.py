"""A TensorRT that executes the ONNX with onnxruntime, on "device memory" of `fakes.cudart`.

It has exactly the names that edgeqc uses; tests/unit/test_edge_tensorrt.py compares them with NVIDIA's.
"""

from __future__ import annotations

import ctypes
import enum

import numpy as np

__version__ = "10.3.0"
_MAGIC = b"fake engine\0"


class Logger:
    WARNING = 2

    def __init__(self, min_severity=WARNING):
        pass


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class TensorIOMode(enum.IntEnum):
    INPUT = 1
    OUTPUT = 2


class DataType(enum.IntEnum):
    FLOAT = 0
    INT8 = 2


def nptype(trt_type):
    return {DataType.FLOAT: np.float32, DataType.INT8: np.int8}[trt_type]


class INetworkDefinition:
    onnx = b""


class IBuilderConfig:
    def set_flag(self, flag):
        raise AssertionError("a strongly typed network takes no precision flag")

    def clear_flag(self, flag):
        assert flag == BuilderFlag.TF32


class Builder:
    builds = 0

    def __init__(self, logger):
        assert isinstance(logger, Logger)

    def create_network(self, flags):
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def build_serialized_network(self, network, config):
        Builder.builds += 1
        return memoryview(_MAGIC + network.onnx)


class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._error = network, None

    def parse(self, model):
        try:
            _session(model)
        except Exception as error:  # noqa: BLE001  any refusal is a parser error
            self._error = error
            return False
        self._network.onnx = model
        return True

    @property
    def num_errors(self):
        return 0 if self._error is None else 1

    def get_error(self, index):
        return self._error


class Runtime:
    def __init__(self, logger):
        assert isinstance(logger, Logger)

    def deserialize_cuda_engine(self, serialized_engine):
        if not serialized_engine.startswith(_MAGIC):
            return None
        return ICudaEngine(_session(serialized_engine[len(_MAGIC) :]))


class ICudaEngine:
    def __init__(self, session):
        self._session = session
        self._inputs = {tensor.name: tensor for tensor in session.get_inputs()}
        self._all = {**self._inputs, **{tensor.name: tensor for tensor in session.get_outputs()}}

    @property
    def num_io_tensors(self):
        return len(self._all)

    def get_tensor_name(self, index):
        return list(self._all)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return list(self._all[name].shape)

    def get_tensor_dtype(self, name):
        return {"tensor(float)": DataType.FLOAT, "tensor(int8)": DataType.INT8}[self._all[name].type]

    def create_execution_context(self):
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._addresses = engine, {}

    def set_tensor_address(self, name, memory):
        assert memory
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        assert stream_handle
        engine = self._engine
        feeds = {name: self._memory(name).copy() for name in engine._inputs}
        names = [name for name in engine._all if name not in feeds]
        for name, value in zip(names, engine._session.run(names, feeds)):
            self._memory(name)[...] = value
        return True

    def _memory(self, name):
        shape = self._engine.get_tensor_shape(name)
        dtype = np.dtype(nptype(self._engine.get_tensor_dtype(name)))
        size = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_char * size).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)


def _session(onnx):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
