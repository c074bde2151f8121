"""The state of a training that is not done: ``OUT.partial/state.pt``, replaced as a whole after each epoch.

A killed training loses at most the epoch that it was in: the same command finds the state and goes on. The
random numbers of an epoch depend on the seed and its number only, so the result is what it would have been; under
a time limit, what it would have been on a machine of the same speed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from edge.errors import InputError
from edge.folders import jsonable, write_json

STATE = "state.pt"
NEW_STATE = "state.pt.new"
SETTINGS = "settings.json"


class Checkpoint:
    """Where a training to ``out`` keeps its state; ``settings`` is everything that its result depends on."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.folder = out.with_name(out.name + ".partial")
        self.settings: dict[str, Any] = json.loads(json.dumps(jsonable(settings)))

    def check(self) -> bool:
        """Whether there is a state to go on from.

        Raises ``InputError`` if it is of another training: other data, other options.
        """
        if not (self.folder / STATE).is_file():
            if self.folder.exists() and {item.name for item in self.folder.iterdir()} - {SETTINGS, NEW_STATE}:
                raise InputError(
                    f"{self.folder} is in the way",
                    wanted="an unfinished training, or no such folder",
                    next_step="move it, or choose another --out",
                )
            return False
        try:
            earlier = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._unusable(f"{SETTINGS}: {error}") from error
        if earlier != self.settings:
            raise InputError(
                f"{self.folder} is an unfinished training with other settings",
                wanted=_difference(earlier, self.settings, 0),
                got=_difference(earlier, self.settings, 1),
                next_step=f"use the same options to resume it, or remove {self.folder}",
            )
        return True

    def begin(self) -> None:
        """Make the folder, before hours are spent on what could not be kept."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / SETTINGS, self.settings)
        except OSError as error:
            raise InputError(
                f"cannot write {self.folder}", got=error.strerror, next_step="choose another --out"
            ) from error

    def load(self) -> dict[str, Any]:
        """The last epoch's state."""
        try:
            state: dict[str, Any] = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the unpickler trips over in bytes that are not its own
            raise self._unusable(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state (tensors and plain values) in one step."""
        temporary = self.folder / NEW_STATE
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.folder / STATE)

    def remove(self) -> None:
        """The training is done, or not worth keeping."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _unusable(self, reason: str) -> InputError:
        return InputError(
            f"the unfinished training in {self.folder} cannot be read",
            got=reason,
            next_step=f"remove {self.folder} and train again",
        )


def _difference(earlier: dict[str, Any], now: dict[str, Any], side: int) -> str:
    """The settings that differ, as ``name=value`` of the earlier (0) or the present (1) training."""
    pairs = (_flat(earlier), _flat(now))
    names = [n for n in sorted(pairs[0].keys() | pairs[1].keys()) if pairs[0].get(n) != pairs[1].get(n)]
    return ", ".join(f"{name}={pairs[side].get(name)}" for name in names[:6])


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
