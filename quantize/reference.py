"""Full precision, behind the runtime's own interface: the truth that every device is compared with.

A RUN folder opens as an ``Inspector`` like an artifact does, so framing, postprocessing and predictions are
the very code that the device runs; only the network is torch in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from edge.backend import RanOn, Session, TensorSpec
from edge.errors import BackendUnavailableError
from edge.inspector import Inspector
from edge.preprocess import InputSpec
from quantize import run as runs
from quantize.models.batch_norm import fold_batch_norm
from quantize.models.own import check_outputs


class TorchSession(Session):
    """A network in eval mode and fp32, batch 1: on CUDA with TF32 off where there is one, else on the CPU."""

    def __init__(self, model: nn.Module, spec: InputSpec, device: str | None = None) -> None:
        self.device = _device(device)
        shape = spec.channels, spec.height, spec.width
        self.model = fold_batch_norm(model, shape).float().to(self.device)
        self.inputs = (TensorSpec("input", spec.shape, "float32"),)
        defect, mask = check_outputs(self.model, shape)
        self.outputs = (
            TensorSpec("defect", tuple(defect.shape), "float32"),
            TensorSpec("mask", tuple(mask.shape), "float32"),
        )
        self.ran_on = RanOn(device=str(self.device), sdk="torch", version=torch.__version__)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            defect, mask = self.model(torch.from_numpy(feeds["input"]).to(self.device))
        return {"defect": defect.cpu().numpy(), "mask": mask.cpu().numpy()}

    def _close(self) -> None:
        self.model = nn.Identity()


def open_run(path: str | Path, device: str | None = None) -> Inspector:
    """Open a RUN folder as an ``Inspector`` in full precision.

    ``device`` is torch's name (``cpu``, ``cuda``, ``cuda:1``); None takes CUDA where there is one.
    """
    run = runs.open_run(path)
    session = TorchSession(run.load_model(), run.input, device)
    return Inspector(
        session, run.input, run.framing, run.decision, digest=run.digest, name=run.name, precision="fp32"
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name.lower())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by kind of device
        raise BackendUnavailableError(
            f"torch has no device {name!r} here",
            wanted="cpu" + (", cuda" if torch.cuda.is_available() else ""),
            got=str(error).splitlines()[0],
        ) from error
    return device
