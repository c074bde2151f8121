"""The RUN folder: what ``train`` leaves behind and everything after it starts from.

```
model.safetensors   weights, batch norm not folded
run.json            format edgeqc-run/1: model, input, framing, decision, mask threshold, data, training
metrics.json        decision-linked metrics on val, and the history of the training
grid.safetensors    where `train --qat` tuned it: the integer grid, see `quantize.tuned_grid`
```
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.artifact import Decision
from edge.errors import ArtifactError, FormatVersionError, InputError, ManifestError
from edge.folders import sha256, write_json
from edge.preprocess import Framing, InputSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = "edgeqc-run/1"
RUN = "run.json"
WEIGHTS = "model.safetensors"
METRICS = "metrics.json"
GRID = "grid.safetensors"


@dataclass(frozen=True)
class Run:
    """A RUN folder that was read and checked; ``facts`` is all of ``run.json``."""

    path: Path
    facts: dict[str, Any]
    input: InputSpec
    framing: Framing
    decision: Decision

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def model_config(self) -> dict[str, Any]:
        """What ``quantize.models.build`` takes."""
        return dict(self.facts["model"])

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def tuned_grid(self) -> Path | None:
        """The integer grid that `edgeqc train --qat` left; None where nothing was tuned."""
        file = self.path / GRID
        return file if file.is_file() else None

    @property
    def digest(self) -> str:
        """SHA-256 of the weights: the checkpoint digest that artifacts refer to."""
        return sha256(self.weights)

    @property
    def dataset_digest(self) -> str:
        """Digest of the data set that it was trained on."""
        return str(self.facts["data"]["digest"])

    def load_model(self) -> nn.Module:
        """The trained network in eval mode, fp32, on the CPU.

        Raises:
            ArtifactError: the weights are damaged, missing, or of another network than ``run.json`` says.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from quantize.models import build

        try:
            state = load_file(self.weights)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(
                f"{self.weights} cannot be read",
                got=str(error),
                next_step="train again, or copy the RUN again",
            ) from error
        with torch.random.fork_rng(devices=[]):  # building draws weights that are overwritten anyway
            model = build(self.model_config)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ArtifactError(
                f"{self.weights} does not fit the network in {RUN}",
                wanted=json.dumps(self.model_config),
                got=str(error).splitlines()[-1].strip(),
                next_step="the network's code is of another version: go back to it, or train again",
            ) from error
        return model.eval()


def open_run(path: str | Path) -> Run:
    """Read ``run.json`` of a RUN folder.

    Raises:
        InputError: no such folder.
        ManifestError: no ``run.json``, no JSON, or a field is missing or unusable.
        FormatVersionError: another format version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(
            f"there is no RUN folder {folder}", next_step="name the folder that `edgeqc train --out` wrote"
        )
    file = folder / RUN
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ManifestError(f"{folder} has no {RUN}, so it is no RUN folder") from error
    except (OSError, ValueError) as error:
        raise ManifestError(f"{file} is not readable as JSON", got=str(error)) from error
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT:
        raise FormatVersionError(f"{file} has an unknown format", wanted=FORMAT, got=found)
    try:
        size, framing, decision = facts["input"], facts["framing"], facts["decision"]
        run = Run(
            path=folder,
            facts=facts,
            input=network_input(int(size["width"]), int(size["height"]), int(size["channels"])),
            framing=Framing(str(framing["mode"]), int(framing.get("overlap", 0))),
            decision=Decision(
                threshold=float(decision["threshold"]),
                mask_threshold=float(facts["mask_threshold"]),
                rule=str(decision["rule"]),
                labels=(str(facts["labels"][0]), str(facts["labels"][1])),
            ),
        )
        _ = run.name, run.model_config, run.dataset_digest
    except (KeyError, TypeError, ValueError, IndexError, InputError) as error:
        raise ManifestError(
            f"{file} has an unusable field", got=f"{type(error).__name__}: {error}", next_step="train again"
        ) from error
    return run


def network_input(width: int, height: int, channels: int) -> InputSpec:
    """What the full-precision network takes: float32 (p - 128)/128, batch 1, NCHW."""
    return InputSpec(width, height, channels, "nchw", "float32", "centered_float")


def write_run(folder: Path, state: dict[str, Tensor], facts: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Write the three files into ``folder`` (which is a staging folder of the caller's)."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes it private, and a RUN is copied between people
    write_json(folder / METRICS, metrics)
    write_json(folder / RUN, {"format": FORMAT, **facts})
