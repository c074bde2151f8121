"""The whole common interface of the runtimes: `Backend`, `Session`, `Probe`.

A backend author writes `_probe`, `_load` and `_run`; the base classes check what goes in, check that the
loaded network is the one that the manifest describes, and translate the SDK's errors.
Adding a file to `edge/backends/` registers it; third parties use the entry-point group `edgeqc.backends`.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import platform
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edge.artifact import Artifact
from edge.errors import (
    BackendUnavailableError,
    EdgeError,
    IncompatibleArtifactError,
    InferenceError,
    InputError,
)

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


@lru_cache(maxsize=1)
def processor_family() -> str:
    """Architecture and processor model, e.g. `x86_64 Intel(R) N100`; the same text on equal machines."""
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


@dataclass(frozen=True)
class RanOn:
    """Where a result was computed. `stand_in`: the target's own device was replaced by the host."""

    device: str
    sdk: str
    version: str
    stand_in: bool = False
    processor: str = field(default_factory=processor_family)


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
            if not isinstance(array, np.ndarray):
                raise InputError(
                    f"input `{spec.name}` does not fit the model",
                    wanted=f"{spec.dtype} {spec.shape}",
                    got="nothing" if array is None else type(array).__name__,
                )
            if array.dtype != spec.dtype or array.shape != spec.shape or not array.flags.c_contiguous:
                raise InputError(
                    f"input `{spec.name}` does not fit the model",
                    wanted=f"{spec.dtype} {spec.shape}, contiguous",
                    got=f"{array.dtype} {array.shape}" + ("" if array.flags.c_contiguous else ", strided"),
                )
        if len(feeds) != len(self.inputs):
            extra = sorted(set(feeds) - {spec.name for spec in self.inputs})
            raise InputError("inputs that the model does not have", got=", ".join(extra))
        try:
            return self._run(feeds)
        except EdgeError:
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

    def _close(self) -> None:  # noqa: B027  most sessions have nothing to release
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
        sdk_modules: modules of the SDK, the preferred one first; any one of them will do.
        install: the command that installs the SDK.
    """

    name: ClassVar[str]
    extra: ClassVar[str] = ""
    sdk_modules: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.install:
            own = f"install the SDK of {getattr(cls, 'name', cls.__name__)}"
            cls.install = f'pip install "edgeqc[{cls.extra}]"' if cls.extra else own

    def sdk(self) -> Any:
        """Import the SDK: the first of `sdk_modules` that is there.

        Raises:
            ImportError: none of them is.
        """
        reasons = []
        for name in self.sdk_modules:
            try:
                return importlib.import_module(name)
            except (ImportError, OSError) as exc:  # OSError: the SDK is there, a library that it needs is not
                reasons.append(f"{name}: {exc}")
        raise ImportError("; ".join(reasons))

    def probe(self) -> Probe:
        """Say whether the backend works here. Never raises: a failure is the reason it is not usable."""
        try:
            return self._probe()
        except ImportError as exc:
            return Probe(False, f"its SDK is not installed ({exc})", fix=self.install)
        except EdgeError as exc:
            return Probe(False, exc.what, fix=exc.next_step or self.install)
        except Exception as exc:  # noqa: BLE001  an SDK may raise anything; the person sees what it said
            return Probe(False, f"its SDK fails: {type(exc).__name__}: {exc}", fix=self.install)

    @abstractmethod
    def _probe(self) -> Probe:
        """What a backend looks at; may raise, ImportError for a missing SDK included."""

    def load(self, artifact: Artifact, device: str | None = None) -> Session:
        """Load `artifact` on `device` (None: the backend's default device; never a silent fall-back).

        Raises:
            BackendUnavailableError: SDK or device missing.
            IncompatibleArtifactError: the artifact is not for this backend, device or SDK.
        """
        meant_for = {artifact.backend} | ({str(artifact.stand_in["backend"])} if artifact.stand_in else set())
        if self.name not in meant_for:
            raise IncompatibleArtifactError(
                f"{artifact.path} is not for backend `{self.name}`",
                wanted=self.name,
                got=" or ".join(sorted(meant_for)),
                next_step="export the RUN for this target",
            )
        try:
            session = self._load(artifact, device)
        except EdgeError:
            raise
        except ImportError as exc:
            raise self.unavailable("its SDK is not installed", got=exc) from exc
        except Exception as exc:  # an SDK may raise anything; translated here, once for all backends
            raise IncompatibleArtifactError(
                f"backend `{self.name}` cannot load {artifact.model_file}",
                got=f"{type(exc).__name__}: {str(exc).strip()[:500]}",
                next_step="run `edgeqc doctor`; if it is healthy, export again for this SDK version",
            ) from exc
        try:
            check_fit(session, artifact)
        except BaseException:
            session.close()
            raise
        return session

    @abstractmethod
    def _load(self, artifact: Artifact, device: str | None) -> Session:
        """What a backend writes; may raise whatever the SDK raises, ImportError included."""

    def unavailable(
        self, reason: str, *, got: object = None, fix: str | None = None
    ) -> BackendUnavailableError:
        """The error for a missing SDK or device, with the extra and the exact install command."""
        return BackendUnavailableError(
            f"backend `{self.name}` is not usable here: {reason}"
            + (f" (extra `{self.extra}`)" if self.extra and fix is None else ""),
            got=got,
            next_step=fix or self.install,
        )


def check_fit(session: Session, artifact: Artifact) -> None:
    """Check that the loaded network has the input and outputs that the manifest describes.

    Raises:
        IncompatibleArtifactError: it has not.
    """
    wanted, got = (
        f"{artifact.input.file_dtype} {artifact.input.shape}",
        ", ".join(f"{spec.dtype} {spec.shape}" for spec in session.inputs),
    )
    if wanted != got:
        raise IncompatibleArtifactError(
            f"the input of {artifact.model_file} is not the one in its manifest",
            wanted=wanted,
            got=got,
            next_step="export the artifact again",
        )
    shapes = {spec.name: spec.shape for spec in session.outputs}
    mask = shapes.get("mask", ())
    channel = mask[3 if artifact.input.layout == "nhwc" else 1] if len(mask) == 4 else 0
    named = set(artifact.output_names)
    if set(shapes) != named or math.prod(shapes["defect"]) != 1 or channel != 1 or mask[0] != 1:
        raise IncompatibleArtifactError(
            f"the outputs of {artifact.model_file} are not the ones of the contract",
            wanted="defect (1, 1) and mask, batch 1 and one channel",
            got=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
            next_step="export the artifact again",
        )


def output_indices(names: Sequence[Collection[str]], artifact: Artifact) -> dict[str, int]:
    """Find the outputs that the artifact names among the file's: `defect`, `mask`, and whatever is tapped.

    Args:
        names: for each output of the file, in its order, the names that the SDK knows it by.

    Returns:
        {"defect": index, "mask": index, ...}

    Raises:
        IncompatibleArtifactError: a name of the manifest is not among them.
    """
    found = {}
    for key, name in artifact.output_names.items():
        matches = [index for index, known in enumerate(names) if name in known]
        if len(matches) != 1:
            raise IncompatibleArtifactError(
                f"{artifact.model_file} has no output `{name}`, which its manifest calls `{key}`",
                wanted=name,
                got=", ".join("/".join(sorted(known)) for known in names),
                next_step="export the artifact again",
            )
        found[key] = matches[0]
    return found


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
            and value.__module__ == module.__name__  # first: on Python 3.9 `dict[str, X]` is a `type`, too
            and issubclass(value, Backend)
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
