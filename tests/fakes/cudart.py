"""A libcudart whose device memory is host memory, with the functions that `edge.backends._cuda` calls."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

GPU = b"Fake Orin"


def library(gpus: int = 1) -> SimpleNamespace:
    """One fake; `.live` maps the addresses of allocated memory, so that tests can see leaks."""
    live: dict[int, ctypes.Array] = {}

    def get_device_count(count):
        count._obj.value = gpus
        return 0 if gpus else 100

    def get_device_properties(properties, index):
        if index >= gpus:
            return 101
        ctypes.memmove(properties, GPU, len(GPU))
        return 0

    def set_device(index):
        return 0 if index < gpus else 101

    def malloc(pointer, size):
        block = ctypes.create_string_buffer(size.value)
        live[ctypes.addressof(block)] = block
        pointer._obj.value = ctypes.addressof(block)
        return 0

    def free(pointer):
        return 0 if live.pop(pointer.value, None) is not None else 1

    def memcpy_async(target, source, size, kind, stream):
        assert kind.value in (1, 2)
        assert stream.value
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def stream_create(stream):
        stream._obj.value = 4096
        return 0

    return SimpleNamespace(
        live=live,
        cudaGetDeviceCount=get_device_count,
        cudaGetDeviceProperties=get_device_properties,
        cudaSetDevice=set_device,
        cudaMalloc=malloc,
        cudaFree=free,
        cudaMemcpyAsync=memcpy_async,
        cudaStreamCreate=stream_create,
        cudaStreamSynchronize=lambda stream: 0,
        cudaStreamDestroy=lambda stream: 0,
        cudaGetErrorString=lambda code: f"fake error {code}".encode(),
    )
