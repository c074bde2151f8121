"""The few calls of CUDA's runtime library that an inference needs, through ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy.typing as npt

from edge.errors import BackendUnavailableError, InferenceError

# Newest first; JetPack 5 has CUDA 11, JetPack 6 has 12.
LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
INSTALL = "sudo apt-get install nvidia-jetpack"
_TO_DEVICE, _TO_HOST = 1, 2
# cudaDeviceProp starts with `char name[256]` in every CUDA version; the whole of it is below 2 KiB.
_NAME_BYTES, _PROPERTIES_BYTES = 256, 8192


def open_library() -> Any:
    """libcudart.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendUnavailableError(
        "CUDA's runtime library is not installed",
        wanted=" or ".join(LIBRARIES),
        got="none of them",
        next_step=INSTALL,
    )


class Cuda:
    """libcudart with its error codes turned into exceptions."""

    def __init__(self) -> None:
        self._library = open_library()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def call(self, function: str, *arguments: Any) -> None:
        """Call one function of the library.

        Raises:
            InferenceError: it returned an error.
        """
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            text = (self._library.cudaGetErrorString(code) or b"").decode(errors="replace")
            raise InferenceError(
                f"CUDA's {function} failed", got=f"{text} ({code})", next_step="run `edgeqc doctor`"
            )

    def device_names(self) -> tuple[str, ...]:
        """The GPUs' names, in CUDA's order; at least one.

        Raises:
            BackendUnavailableError: CUDA finds no GPU, or no driver for it.
        """
        count = ctypes.c_int()
        try:
            self.call("cudaGetDeviceCount", ctypes.byref(count))
        except InferenceError as exc:
            raise BackendUnavailableError("CUDA finds no GPU", got=exc.got, next_step=INSTALL) from exc
        names = []
        for index in range(count.value):
            properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
            self.call("cudaGetDeviceProperties", properties, index)
            names.append(properties.raw[:_NAME_BYTES].split(b"\0")[0].decode(errors="replace"))
        return tuple(names)

    def select(self, index: int) -> None:
        """Make GPU `index` the calling thread's device."""
        self.call("cudaSetDevice", index)

    def allocate(self, size_bytes: int) -> ctypes.c_void_p:
        """Allocate device memory."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        return pointer

    def free(self, pointer: ctypes.c_void_p) -> None:
        """Release device memory."""
        self.call("cudaFree", pointer)

    def stream(self) -> ctypes.c_void_p:
        """Create a stream."""
        handle = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(handle))
        return handle

    def close_stream(self, stream: ctypes.c_void_p) -> None:
        """Destroy a stream."""
        self.call("cudaStreamDestroy", stream)

    def to_device(self, pointer: ctypes.c_void_p, array: npt.NDArray[Any], stream: ctypes.c_void_p) -> None:
        """Enqueue a copy of a contiguous array into device memory."""
        self._copy(pointer, ctypes.c_void_p(array.ctypes.data), array.nbytes, _TO_DEVICE, stream)

    def to_host(self, array: npt.NDArray[Any], pointer: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        """Enqueue a copy of device memory into a contiguous array."""
        self._copy(ctypes.c_void_p(array.ctypes.data), pointer, array.nbytes, _TO_HOST, stream)

    def _copy(
        self, target: ctypes.c_void_p, source: ctypes.c_void_p, size: int, kind: int, stream: ctypes.c_void_p
    ) -> None:
        self.call("cudaMemcpyAsync", target, source, ctypes.c_size_t(size), ctypes.c_int(kind), stream)

    def synchronize(self, stream: ctypes.c_void_p) -> None:
        """Wait until everything in the stream is done."""
        self.call("cudaStreamSynchronize", stream)
