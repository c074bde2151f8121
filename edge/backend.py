"""The whole common interface of the runtimes: `Backend`, `Session`, `Probe`.

A backend author writes `probe`, `load` and `_run`; the base class checks the feeds and wraps the SDK's errors.
Adding a file to `edge/backends/` registers it; third parties use the entry-point group `edgeqc.backends`.
"""

from __future__ import annotations

import importlib
import pkgutil
import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edge.artifact import Artifact
from edge.errors import BackendError, BackendUnavailableError, InferenceError, InputError

Tensors = dict[str, npt.NDArray[Any]]
BACKEND_GROUP = "edgeqc.backends"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the model file, in the file's own dtype.

    Attributes:
        scale, zero_point: real value = (q - zero_point) * scale; None for float tensors.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Probe:
    """What `probe` saw: is this backend usable here, and if not, why and what fixes it."""

    usable: bool
    reason: str
    sdk: str = ""
    version: str = ""
    devices: tuple[str, ...] = ()
    fix: str = ""


@dataclass(frozen=True)
class RanOn:
    """Where a result was computed. `stand_in` is True when the target's own device was replaced by the host."""

    device: str
    sdk: str
    version: str
    stand_in: bool = False
    processor: str = field(default_factory=lambda: processor_family())


def processor_family() -> str:
    """Machine architecture and processor model, e.g. `x86_64 Intel(R) N100`; the same text on equal machines."""
    model = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            for line in stream:
                if line.lower().startswith(("model name", "hardware", "cpu part")):
                    model = line.split(":", 1)[1].strip()
                    break
    except OSError:  # not Linux
        model = platform.processor()
    return f"{platform.machine()} {model}".strip()


class Session(ABC):
    """A loaded network. Implementers set `inputs`, `outputs`, `ran_on` and write `_run`."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ran_on: RanOn
    _closed: bool = False

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        """Run once.

        Args:
            feeds: one contiguous array for each of `inputs`, exact dtype and shape.

        Returns:
            arrays named `defect` and `mask` in the file's own dtype, valid until the next `run`.

        Raises:
            InputError: a missing, extra or wrong feed.
            InferenceError: the SDK failed, or the session is closed.
        """
        if self._closed:
            raise InferenceError("this session is closed", next_step="load the artifact again")
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None or array.dtype != spec.dtype or array.shape != spec.shape:
                raise InputError(
                    f"input `{spec.name}` does not fit the model",
                    wanted=f"{spec.dtype} {spec.shape}",
                    got="nothing" if array is None else f"{array.dtype} {array.shape}",
                )
        if len(feeds) != len(self.inputs):
            extra = sorted(set(feeds) - {spec.name for spec in self.inputs})
            raise InputError("inputs that the model does not have", got=", ".join(extra))
        try:
            return self._run(feeds)
        except BackendError:
            raise
        except Exception as exc:  # an SDK may raise anything; translated here, once for all backends
            raise InferenceError(
                f"{self.ran_on.sdk} failed while running the network",
                got=f"{type(exc).__name__}: {exc}",
                next_step="run `edgeqc doctor`; if it is healthy, `edgeqc selftest` on this artifact",
            ) from exc

    @abstractmethod
    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        """Run the checked feeds."""

    def start(self, feeds: Mapping[str, npt.NDArray[Any]]) -> object:
        """Begin an asynchronous run and return its ticket; the default runs at once."""
        return self.run(feeds)

    def wait(self, ticket: object) -> Tensors:
        """Return the outputs of `start`'s ticket."""
        assert isinstance(ticket, dict)
        return ticket

    def close(self) -> None:
        """Release the device. Idempotent."""
        if not self._closed:
            self._closed = True
            self._close()

    def _close(self) -> None:
        """What a backend releases; by default nothing."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Backend(ABC):
    """One runtime.

    Attributes:
        name: as in manifests, e.g. `openvino`.
        extra: the pip extra that installs its SDK, empty when pip cannot.
    """

    name: ClassVar[str]
    extra: ClassVar[str] = ""

    @abstractmethod
    def probe(self) -> Probe:
        """Say whether the backend works here. Never raises."""

    @abstractmethod
    def load(self, artifact: Artifact, device: str | None) -> Session:
        """Load `artifact` on `device` (None: the backend's default device; never a silent fall-back).

        Raises:
            BackendUnavailableError: SDK or device missing.
            IncompatibleArtifactError: the artifact is not for this backend, device or SDK.
        """

    def unavailable(self, reason: str, *, got: object = None, fix: str | None = None) -> BackendUnavailableError:
        """The error for a missing SDK or device, with the extra and the exact install command."""
        install = f'pip install "edgeqc[{self.extra}]"' if self.extra else None
        return BackendUnavailableError(
            f"backend `{self.name}` is not usable here: {reason}", got=got, next_step=fix or install
        )


def backends() -> dict[str, Backend]:
    """All backends by name: each module in `edge.backends`, then the entry points of third parties."""
    import edge.backends as folder

    found: dict[str, Backend] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        if not module.name.startswith("_"):
            _register(found, importlib.import_module(f"{folder.__name__}.{module.name}"))
    for point in entry_points(BACKEND_GROUP):
        backend = point.load()()
        found[backend.name] = backend
    return found


def _register(found: dict[str, Backend], module: Any) -> None:
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Backend)
            and value.__module__ == module.__name__
            and not getattr(value, "__abstractmethods__", None)
        ):
            found[value.name] = value()


def entry_points(group: str) -> list[metadata.EntryPoint]:
    """Entry points of a group, on Python 3.9 (a dict) and later (a selection)."""
    points: Any = metadata.entry_points()
    selected = points.get(group, ()) if isinstance(points, dict) else points.select(group=group)
    return sorted(set(selected), key=lambda point: point.name)


def find_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        BackendUnavailableError: nobody registered that name.
    """
    known = backends()
    if name not in known:
        raise BackendUnavailableError(
            f"no backend is called `{name}`", wanted=", ".join(sorted(known)), next_step="run `edgeqc doctor`"
        )
    return known[name]


def as_dtype(dtype: Any) -> str:
    """Canonical numpy name of a dtype, e.g. `int8`."""
    return str(np.dtype(dtype).name)
