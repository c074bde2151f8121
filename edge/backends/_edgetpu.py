"""The Edge TPU's own library, through its C interface (`edgetpu_c.h` of libedgetpu)."""

from __future__ import annotations

import ctypes

DELEGATE_LIBRARY = "libedgetpu.so.1"
# Name of the one custom operation in a file that the Edge TPU compiler wrote.
CUSTOM_OP = b"edgetpu-custom-op"
INSTALL = (
    "plug the Edge TPU in and install its runtime: sudo apt-get install libedgetpu1-std "
    "(Coral's package source: https://coral.ai/software)"
)


class _Device(ctypes.Structure):
    """`struct edgetpu_device`: its type (0 PCIe, 1 USB) and the path of its device node."""

    _fields_ = [("type", ctypes.c_int), ("path", ctypes.c_char_p)]


def open_library() -> ctypes.CDLL | None:
    """libedgetpu, or None where it is not installed."""
    try:
        return ctypes.CDLL(DELEGATE_LIBRARY)
    except OSError:
        return None


def edge_tpus() -> tuple[str, ...]:
    """`edgetpu:0`, `edgetpu:1`, ... for the devices that libedgetpu sees; empty without the library."""
    library = open_library()
    if library is None:
        return ()
    count = ctypes.c_size_t()
    library.edgetpu_list_devices.restype = ctypes.POINTER(_Device)
    library.edgetpu_list_devices.argtypes = [ctypes.POINTER(ctypes.c_size_t)]
    library.edgetpu_free_devices.argtypes = [ctypes.POINTER(_Device)]
    devices = library.edgetpu_list_devices(ctypes.byref(count))
    if devices:
        library.edgetpu_free_devices(devices)
    return tuple(f"edgetpu:{index}" for index in range(count.value))
