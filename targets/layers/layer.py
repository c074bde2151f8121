"""What can be compared of a lowered file: its operations, by the grid's own names.

One integer graph becomes files of three formats, and each keeps the name of the operation: an ONNX tensor, the
OpenVINO tensor read from it, and the last part of a TFLite tensor's name. The network's two outputs and its input
go by the file's own `defect`, `mask` and `input`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.backend import find_backend
from edge.errors import InputError

# Values of one tensor in steps of its grid, 0 for 0, [N, C, H, W] or [N, n]: whole numbers where the runtime quantized
# it.
Steps = npt.NDArray[np.float32]

INPUT = "input"
QMIN, QMAX = -128, 127


@dataclass(frozen=True)
class Layer:
    """One operation, with the clamp behind it, and the tensor that it makes.

    Attributes:
        name: the same in every file of the grid.
        label: the name with the module that made it, as far as the file knows.
        operation: what the file calls it, e.g. `Conv` or `CONV_2D`.
        inputs: names of the layers whose tensors it reads, weights aside.
        step: of its tensor, in the tensor's own unit. Of a tensor that is not quantized, the coarsest among what
            the operation reads.
        quantized: whether the file rounds the tensor to the grid.
        zero_point: the integer that stands for 0, also where the file shifts it (`targets.onnx_writer`).
    """

    name: str
    label: str
    operation: str
    inputs: tuple[str, ...]
    step: float
    quantized: bool = True
    zero_point: int = 0


class Replay(ABC):
    """A file with every edge between two operations cut: each operation runs by itself, on what it is given."""

    how: str  # for people: which runtime, and that it fuses nothing

    @abstractmethod
    def run(self, given: Mapping[str, Steps]) -> dict[str, Steps]:
        """What each operation makes of its inputs in `given` (by layer name, all layers); `input` is left out."""


class LoweredFile(ABC):
    """A model file in which tensors can be tapped.

    Attributes:
        layers: in the order in which they run, the network's input first; empty where the format is read by the
            names that another file of the grid gives (OpenVINO).
    """

    layers: tuple[Layer, ...] = ()

    @abstractmethod
    def steps(self, layers: Sequence[Layer]) -> dict[str, float]:
        """The step that this file gives each of `layers`; layers that it does not have are left out."""

    @abstractmethod
    def write_tapped(self, layers: Sequence[Layer], folder: Path) -> dict[str, str]:
        """Write the file once more into `folder`, the tensors of `layers` among its outputs.

        Returns:
            layer name -> the output's name in the file; the network's own outputs and what is no tensor of the
            file's inside (an input that is int8 already) are left out.
        """

    def replay(self) -> Replay | None:
        """The file with every edge cut; None where the format does not allow it."""
        return None


def sdk(backend: str) -> Any:
    """The SDK of a backend.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    found = find_backend(backend)
    try:
        return found.sdk()
    except ImportError as exc:
        raise found.unavailable("its SDK is not installed", got=exc) from exc


def on_grid(values: Steps, zero_point: int) -> npt.NDArray[np.int8]:
    """The int8 tensor that `values` are; what lies beside or outside the grid goes to its nearest point."""
    return np.clip(np.rint(values) + zero_point, QMIN, QMAX).astype(np.int8)


def apart(a: Steps, b: Steps) -> Steps:
    """How far two tensors of one shape lie apart, value by value; what is not a number is infinitely far."""
    away: Steps = np.abs(a - b)
    away[np.isnan(away)] = np.inf
    return away


def unreadable(path: Path, reason: str) -> InputError:
    """The error for a file in which nothing can be tapped."""
    return InputError(
        f"nothing can be tapped in {path}",
        wanted="a file on the integer grid as `edgeqc export` writes it",
        got=reason,
        next_step="export the RUN again at int8, for onnx, openvino, edgetpu or tensorrt",
    )
