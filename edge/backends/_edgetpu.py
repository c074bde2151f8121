"""The Edge TPU's own library, through its C interface (`edgetpu_c.h` of libedgetpu)."""

from __future__ import annotations

import ctypes
from importlib import util
from pathlib import Path

DELEGATE_LIBRARY = "libedgetpu.so.1"
# Name of the one custom operation in a file that the Edge TPU compiler wrote.
CUSTOM_OP = b"edgetpu-custom-op"
INSTALL = (
    "plug the Edge TPU in and install its runtime: sudo apt-get install libedgetpu1-std "
    "(Coral's package source: https://coral.ai/software)"
)


GOOGLE_PYCORAL, OTHER_PYCORAL = "Google's PyCoral", "a client for a coral-reef atlas"


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


def installed_pycoral() -> str | None:
    """Which `pycoral` is installed; None without one.

    Google never published its PyCoral on the package index; the name there belongs to a coral-reef
    atlas. Told apart by their contents, without importing either: Google's has `utils/edgetpu.py`.
    """
    spec = util.find_spec("pycoral")
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    google = any((folder / "utils" / "edgetpu.py").is_file() for folder in folders)
    return GOOGLE_PYCORAL if google else OTHER_PYCORAL
