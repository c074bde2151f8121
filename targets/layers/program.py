"""One artifact of a comparison: which file, which runtime, and its program with and without taps.

A program is loaded by the shipped backend, with the settings that a camera uses; a tapped one differs in its
outputs alone. So what departs here departs on the line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edge.artifact import MANIFEST, Artifact, write_manifest
from edge.backend import Session, find_backend
from edge.errors import InputError
from edge.inspector import Inspector, open_inspector
from edge.preprocess import UInt8Array, encode
from targets.layers.layer import INPUT, Layer, LoweredFile, Steps
from targets.parity import names, open_here

# Backend -> module of this package and its class.
_FORMATS = {
    "onnx": ("onnx_taps", "OnnxFile"),
    "tensorrt": ("onnx_taps", "OnnxFile"),
    "openvino": ("openvino_taps", "OpenVinoFile"),
    "litert": ("tflite_taps", "TfliteFile"),
}
OUTPUTS = ("defect", "mask")


@dataclass(frozen=True)
class Side:
    """One of the two artifacts.

    Attributes:
        name: short, for people; differs between the two.
        artifact: as it is run: with the stand-in's model file where that replaces the device's.
        session: the shipped program, without any tap.
    """

    name: str
    artifact: Artifact
    backend: str
    device: str | None
    session: Session
    file: LoweredFile

    def facts(self) -> dict[str, Any]:
        """What the result says of it."""
        return {
            "name": self.name,
            "target": self.artifact.target,
            "ran_on": asdict(self.session.ran_on),
            "stand_in": self.session.ran_on.stand_in,
            "digest": self.artifact.digest,
        }


@contextmanager
def open_sides(paths: Sequence[Path]) -> Iterator[tuple[Side, Side]]:
    """Open the two artifacts and check that they are two lowerings of one grid.

    Raises:
        InputError: not two artifacts, the same one twice, not int8, of different grids, or nothing can be tapped.
        BackendUnavailableError: an SDK is missing.
    """
    if len(paths) != 2:
        raise InputError(
            "layers are compared between two artifacts",
            wanted="two artifact folders",
            got=f"{len(paths)}",
            next_step="name the folders of one RUN's exports for two targets",
        )
    artifacts = [_artifact(path) for path in paths]
    _refuse_other_grid(*zip(names(paths), artifacts))
    with ExitStack() as stack:
        sides = [
            _side(stack.enter_context(_opened(artifact)).session, name, artifact)
            for name, artifact in zip(names(paths), artifacts)
        ]
        yield sides[0], sides[1]


def _artifact(path: Path) -> Artifact:
    if not (path / MANIFEST).is_file():
        raise InputError(
            f"{path} is no artifact, so there is no file to tap",
            wanted=f"a folder with {MANIFEST}, which `edgeqc export` writes",
            got="predictions or a RUN" if path.exists() else "nothing there",
            next_step="export the RUN for two targets and name their folders",
        )
    artifact = Artifact.open(path)
    if artifact.precision != "int8":
        raise InputError(
            f"{path} is not on the integer grid",
            wanted="precision int8",
            got=artifact.precision,
            next_step="export it with --precision int8",
        )
    return artifact


def _opened(artifact: Artifact) -> Inspector:
    """On its own device, else on its stand-in; a compiled file shows nothing inside, the one beside it does."""
    model = artifact.manifest["model"]
    if artifact.stand_in is not None and artifact.stand_in.get("model", model) != model:
        return open_inspector(artifact.path, stand_in=True)
    return open_here(artifact.path)


def _side(session: Session, name: str, artifact: Artifact) -> Side:
    backend, device = artifact.backend, artifact.manifest.get("device")
    if session.ran_on.stand_in and artifact.stand_in is not None:
        backend, device = str(artifact.stand_in["backend"]), artifact.stand_in.get("device")
        model = artifact.stand_in.get("model", artifact.manifest["model"])
        artifact = Artifact(artifact.path, {**artifact.manifest, "model": model})
    if backend not in _FORMATS:
        raise InputError(
            f"{artifact.path} runs on backend `{backend}`, whose files nobody here can tap",
            wanted=", ".join(sorted(_FORMATS)),
            got=backend,
            next_step="compare its stand-in, or export the RUN for one of those",
        )
    module, kind = _FORMATS[backend]
    file: LoweredFile = getattr(import_module(f"targets.layers.{module}"), kind)(artifact.model_file)
    return Side(name, artifact, backend, device, session, file)


def _refuse_other_grid(one: tuple[str, Artifact], other: tuple[str, Artifact]) -> None:
    (name, artifact), (other_name, second) = one, other
    if artifact.digest == second.digest:
        raise InputError(
            f"{artifact.path} and {second.path} are the same artifact",
            wanted="two artifacts, of two targets",
            got=f"one manifest, {artifact.digest[:16]}",
            next_step="export the RUN for a second target",
        )
    for what, key, part in (
        ("RUN", "reference", "checkpoint_digest"),
        ("calibration images", "calibration", "images_digest"),
    ):
        wanted, got = ((found.manifest.get(key) or {}).get(part) for found in (artifact, second))
        if wanted != got:
            raise other_grid(name, other_name, f"{what} {_short(wanted)}", f"{what} {_short(got)}")
    # Layout, type and encoding are the target's own choice.
    frames = [
        f"{found.input.width} x {found.input.height} x {found.input.channels}, {asdict(found.framing)}"
        for found in (artifact, second)
    ]
    if frames[0] != frames[1]:
        raise other_grid(name, other_name, frames[0], frames[1])


def other_grid(name: str, other: str, wanted: str, got: str) -> InputError:
    """The error for two artifacts whose operations do not correspond."""
    return InputError(
        f"{name} and {other} are not two lowerings of one grid",
        wanted=f"{wanted}, as {name} has",
        got=f"{got}, in {other}",
        next_step="export both from one RUN with the same data, calibration count and seed",
    )


def _short(digest: Any) -> str:
    return str(digest)[:16] if digest else "not stated"


class Program:
    """A loaded program and what its outputs are in steps of the grid."""

    def __init__(
        self, session: Session, side: Side, layers: Sequence[Layer], steps: dict[str, float]
    ) -> None:
        self.session = session
        self.side = side
        self.feed = session.inputs[0].name
        self.outputs = {spec.name: spec for spec in session.outputs}
        self.layers = {layer.name: layer for layer in layers}
        self.steps = steps

    def run(self, tile: UInt8Array) -> dict[str, Steps]:
        """Run one tile [height, width, channels]; layer name -> tensor, by the steps of the layers asked for."""
        spec = self.side.artifact.input
        encoded = encode(tile, spec)
        found = self.session.run({self.feed: encoded})
        values = {name: self._in_steps(name, array) for name, array in found.items()}
        if INPUT in self.layers and INPUT not in values:  # int8 already, so it is no tensor inside
            values[INPUT] = self._turned(encoded.astype(np.float32))
        return values

    def _in_steps(self, name: str, array: Any) -> Steps:
        spec, step = self.outputs[name], self.layers[name].step
        whole = np.issubdtype(array.dtype, np.integer)
        values = array.astype(np.float32) - (self.layers[name].zero_point if whole else 0)
        # Whole numbers are counted in the file's own step, and so are compared by their value.
        factor = (spec.scale or self.steps[name]) / step if whole else 1 / step
        return self._turned(values if factor == 1 else values * np.float32(factor))

    def _turned(self, values: Steps) -> Steps:
        nhwc = self.side.artifact.input.layout == "nhwc" and values.ndim == 4
        return values.transpose(0, 3, 1, 2) if nhwc else values


@contextmanager
def program(
    side: Side, layers: Sequence[Layer], steps: dict[str, float], taps: Sequence[Layer] = ()
) -> Iterator[Program]:
    """Load the side's program with `taps` as further outputs; without any it is the shipped file itself.

    Args:
        layers: all of the grid, in whose steps the answers are given.
        steps: of this side's file, by layer name.
    """
    outputs = [layer for layer in layers if layer.name in OUTPUTS]
    if not taps:
        yield Program(side.session, side, outputs, steps)
        return
    with TemporaryDirectory(prefix="edgeqc-taps-") as folder:
        tensors = side.file.write_tapped(taps, Path(folder))
        facts = {**side.artifact.manifest, "stand_in": None, "backend": side.backend, "golden": None}
        artifact = write_manifest(Path(folder), facts)
        artifact.output_names.update(tensors)  # the backend asks the file for these, and for no others
        with find_backend(side.backend).load(artifact, side.device) as session:
            yield Program(session, side, [*outputs, *taps], steps)
