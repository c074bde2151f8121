"""The working folder of a training from labels alone: ``OUT.weak``, one folder for each stage, whole or not there.

A killed training loses the stage it was in; a training inside a stage goes on from its own last epoch.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.errors import InputError
from edge.folders import jsonable, new_folder, write_json

SETTINGS = "settings.json"
FACTS = "stage.json"


class Stages:
    """``settings`` is everything that the results depend on."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.folder = out.with_name(out.name + ".weak")
        self.settings: dict[str, Any] = json.loads(json.dumps(jsonable(settings)))

    def open(self) -> None:
        """Make the folder, or take up what an earlier call left.

        Raises ``InputError`` if it is of another training, or cannot be written.
        """
        if self.folder.exists():
            try:
                earlier = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{self.folder} is in the way",
                    wanted="the stages of an earlier call, or no such folder",
                    got=str(error),
                    next_step="move it, or choose another --out",
                ) from error
            if earlier != self.settings:
                names = [n for n in self.settings if earlier.get(n) != self.settings[n]]
                raise InputError(
                    f"{self.folder} has the stages of a training with other settings",
                    wanted=f"the same {', '.join(names)}",
                    got=", ".join(f"{n}={earlier.get(n)}" for n in names),
                    next_step=f"use the same options to go on, or remove {self.folder}",
                )
            for left in self.folder.glob(".*"):  # what a kill left of a stage
                shutil.rmtree(left, ignore_errors=True)
            return
        try:
            self.folder.mkdir(parents=True)
            write_json(self.folder / SETTINGS, self.settings)
        except OSError as error:
            raise InputError(
                f"cannot write {self.folder}", got=error.strerror, next_step="choose another --out"
            ) from error

    def run(self, name: str, work: Callable[[Path], dict[str, Any]]) -> Path:
        """The folder of stage ``name``; ``work`` fills it and returns its facts, unless it is there already."""
        folder = self.folder / name
        if not folder.exists():
            print(f"stage {name}", file=sys.stderr, flush=True)
            began = time.monotonic()
            with new_folder(folder) as staging:
                facts = work(staging)
                write_json(staging / FACTS, {**facts, "seconds": round(time.monotonic() - began, 1)})
        self._tell(name)
        return folder

    def train(self, name: str, work: Callable[[Path], dict[str, Any]]) -> Path:
        """The same for a stage that is a training, which makes its RUN folder itself and can be resumed."""
        folder = self.folder / name
        if not (folder / FACTS).is_file():
            print(f"stage {name}", file=sys.stderr, flush=True)
            facts = work(folder)
            write_json(folder / FACTS, facts)
        self._tell(name)
        return folder

    def facts(self) -> dict[str, Any]:
        """What each stage that is done says of itself."""
        return {path.parent.name: read_facts(path.parent) for path in sorted(self.folder.glob(f"*/{FACTS}"))}

    def _tell(self, name: str) -> None:
        facts = read_facts(self.folder / name)
        said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())
        print(f"stage {name}: {said}", file=sys.stderr, flush=True)


def read_facts(folder: Path) -> dict[str, Any]:
    """What a stage wrote down of itself."""
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return facts
