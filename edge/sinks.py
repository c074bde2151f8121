"""Where inspections go: JSON lines, and overlays for people. A sink's files appear whole, or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from edge.errors import EdgeError, InputError
from edge.folders import jsonable, new_file, new_folder, refuse_existing
from edge.images import write_png
from edge.inspector import Inspection, Inspector, overlay
from edge.preprocess import UInt8Array
from edge.sources import Picture

# Called once for each picture: its record, and frame and inspection where there are any.
Sink = Callable[[Picture, dict[str, Any], "tuple[UInt8Array, Inspection] | None"], None]
STANDARD_OUTPUT = "jsonl:-"


def record(picture: Picture, inspection: Inspection, inspector: Inspector) -> dict[str, Any]:
    """What a program wants to know about one inspected frame."""
    return {
        "image": picture.name,
        "verdict": inspection.verdict,
        "defective": inspection.defective,
        "score": inspection.score,
        "threshold": inspector.decision.threshold,
        "mask_area_px": int(inspection.mask.sum()),
        "regions": [asdict(region) for region in inspection.regions],
        "timings": asdict(inspection.timings),
        "ran_on": asdict(inspector.session.ran_on),
    }


def failure(picture: Picture, error: EdgeError) -> dict[str, Any]:
    """The record of a picture that could not be inspected: it has no verdict, and says why."""
    return {"image": picture.name, "error": str(error)}


def check_sink(uri: str) -> None:
    """Raise InputError when `uri` cannot become a sink; cheap, for before the network is loaded."""
    kind, _, target = uri.partition(":")
    if kind not in ("jsonl", "overlay") or not target:
        raise InputError(f"unknown sink `{uri}`", wanted="jsonl:FILE, jsonl:- or overlay:FOLDER")
    if kind == "overlay":
        refuse_existing(Path(target))


def open_sink(uri: str) -> AbstractContextManager[Sink]:
    """Open `jsonl:FILE`, `jsonl:-` (standard output) or `overlay:FOLDER`."""
    check_sink(uri)
    kind, _, target = uri.partition(":")
    return _overlays(Path(target)) if kind == "overlay" else _json_lines(target)


@contextmanager
def _json_lines(target: str) -> Iterator[Sink]:
    if target == "-":
        yield _line_writer(sys.stdout)
        return
    with new_file(Path(target)) as stream:
        yield _line_writer(stream)


def _line_writer(stream: IO[str]) -> Sink:
    def write(picture: Picture, facts: dict[str, Any], seen: tuple[UInt8Array, Inspection] | None) -> None:
        stream.write(json.dumps(jsonable(facts), allow_nan=False, ensure_ascii=False) + "\n")
        stream.flush()

    return write


@contextmanager
def _overlays(target: Path) -> Iterator[Sink]:
    with new_folder(target) as folder:

        def write(
            picture: Picture, facts: dict[str, Any], seen: tuple[UInt8Array, Inspection] | None
        ) -> None:
            if seen is not None:
                file = folder / f"{picture.name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_png(file, overlay(seen[0], seen[1].mask))

        yield write
