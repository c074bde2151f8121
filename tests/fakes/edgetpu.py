"""An Edge TPU whose delegate runs LiteRT on the CPU; fakes libedgetpu and `load_delegate`, nothing else."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace


class Delegate:
    """What `load_delegate` returns."""

    def __init__(self, options):
        self.options = options


def library(count: int = 1) -> SimpleNamespace:
    """A libedgetpu that lists `count` devices."""
    from edge.backends._edgetpu import _Device

    devices = (_Device * max(count, 1))()

    def list_devices(number):
        number._obj.value = count
        return ctypes.cast(devices, ctypes.POINTER(_Device)) if count else None

    return SimpleNamespace(edgetpu_list_devices=list_devices, edgetpu_free_devices=lambda pointer: None)


def plug_in(monkeypatch, sdk, count: int = 1) -> list[Delegate]:
    """Plug `count` Edge TPUs in; returns the delegates that were opened since."""
    from edge.backends import _edgetpu

    opened: list[Delegate] = []
    real = sdk.Interpreter

    def load_delegate(name, options):
        assert name == _edgetpu.DELEGATE_LIBRARY
        index = int(options["device"].lstrip(":"))
        if index >= count:
            raise ValueError(f"Failed to load delegate from {name}")
        opened.append(Delegate(options))
        return opened[-1]

    def interpreter(model_path, experimental_delegates, num_threads):
        assert all(isinstance(delegate, Delegate) for delegate in experimental_delegates)
        return real(model_path=model_path, num_threads=num_threads)

    monkeypatch.setattr(_edgetpu, "open_library", lambda: library(count))
    monkeypatch.setattr(sdk, "load_delegate", load_delegate)
    monkeypatch.setattr(sdk, "Interpreter", interpreter)
    return opened
