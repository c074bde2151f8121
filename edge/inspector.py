"""`Inspector`: a frame goes in, verdict, score, mask, regions and timings come out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edge import postprocess, preprocess
from edge.artifact import MANIFEST, Artifact, Decision
from edge.backend import Session, entry_points, find_backend
from edge.errors import IncompatibleArtifactError, InferenceError, InputError
from edge.images import read_image
from edge.preprocess import BoolArray, Framing, InputSpec

OPENER_GROUP = "edgeqc.openers"


@dataclass(frozen=True)
class Timings:
    """Wall-clock milliseconds of one frame."""

    preprocess_ms: float
    inference_ms: float
    postprocess_ms: float

    @property
    def latency_ms(self) -> float:
        """Frame in to verdict and mask out."""
        return self.preprocess_ms + self.inference_ms + self.postprocess_ms


@dataclass(frozen=True, eq=False)
class Inspection:
    """The answer for one frame.

    Attributes:
        defective: verdict, score >= the decision's threshold.
        verdict: the same as a label of the artifact.
        score: defect logit, the largest over the tiles.
        mask: bool, frame height x width.
    """

    defective: bool
    verdict: str
    score: float
    mask: BoolArray
    timings: Timings

    @cached_property
    def regions(self) -> list[postprocess.Region]:
        """Connected regions of the mask, largest first; computed when asked for."""
        return postprocess.regions(self.mask)


class Inspector:
    """Runs one loaded network on frames. Use as a context manager, or call `close`."""

    def __init__(
        self,
        session: Session,
        spec: InputSpec,
        framing: Framing,
        decision: Decision,
        *,
        digest: str,
        name: str,
        target: str | None = None,
        precision: str | None = None,
        gate: Mapping[str, Any] | None = None,
    ) -> None:
        self.session = session
        self.input = spec
        self.framing = framing
        self.decision = decision
        self.digest = digest
        self.name = name
        self.target = target
        self.precision = precision
        self.gate = gate  # what the exporter's gate said, carried into predictions
        self._feed = session.inputs[0].name
        self._specs = {output.name: output for output in session.outputs}

    def inspect(self, frame: Any) -> Inspection:
        """Inspect one frame.

        Args:
            frame: uint8 HxW or HxWx3 as the camera gives it; never written to.

        Raises:
            InputError: wrong type, shape or size.
            InferenceError: the SDK failed.
        """
        start = time.perf_counter()
        tiles, placement = preprocess.frame_to_tiles(frame, self.input, self.framing)
        feeds = [{self._feed: preprocess.encode(tile, self.input)} for tile in tiles]
        framed = time.perf_counter()
        inference_s = 0.0
        scores, masks = [], []
        for feed in feeds:
            began = time.perf_counter()
            outputs = self.session.run(feed)
            inference_s += time.perf_counter() - began
            scores.append(float(self._logits(outputs, "defect").reshape(-1)[0]))
            logits = self._logits(outputs, "mask")
            if self._specs["mask"].scale is None and not np.isfinite(logits).all():
                scores[-1] = math.nan
            # The runtime may reuse its buffers at the next run; a float tensor is not copied by dequantize.
            masks.append(logits if len(feeds) == 1 else logits.copy())
        if not all(map(math.isfinite, scores)):
            # NaN >= threshold is False: a broken network would call every part good.
            raise InferenceError(
                f"{self.name} gave a score or a mask that is not a number",
                got=scores,
                next_step="run `edgeqc selftest` on the artifact; export it at a wider precision",
            )
        mask = postprocess.stitch(masks, placement, self.decision.mask_threshold)
        score = max(scores)
        defective = score >= self.decision.threshold
        total_s = time.perf_counter() - start
        framing_s = framed - start
        return Inspection(
            defective=defective,
            verdict=self.decision.labels[defective],
            score=score,
            mask=mask,
            timings=Timings(framing_s * 1e3, inference_s * 1e3, (total_s - framing_s - inference_s) * 1e3),
        )

    def _logits(self, outputs: dict[str, Any], name: str) -> preprocess.FloatArray:
        spec = self._specs[name]
        values = postprocess.dequantize(outputs[name], spec.scale, spec.zero_point)
        if name == "defect":
            return values
        # One channel, batch 1: NCHW and NHWC are the same bytes.
        height, width = spec.shape[1:3] if self.input.layout == "nhwc" else spec.shape[2:4]
        return values.reshape(height, width)

    def close(self) -> None:
        """Release the session. Idempotent."""
        self.session.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def inspect_file(inspector: Inspector, path: Path) -> tuple[preprocess.UInt8Array, Inspection]:
    """Read an image file and inspect it; an InputError names the file."""
    frame = read_image(path)
    try:
        return frame, inspector.inspect(frame)
    except InputError as exc:
        raise InputError(
            f"{path}: {exc.what}", wanted=exc.wanted, got=exc.got, next_step=exc.next_step
        ) from exc


def open_inspector(
    path: str | Path, *, backend: str | None = None, device: str | None = None, stand_in: bool = False
) -> Inspector:
    """Open an artifact folder, or whatever else an opener of the training side knows (a RUN folder).

    Args:
        backend: must be the manifest's own backend (or its stand-in's); None takes it from the manifest.
        device: SDK device such as `CPU`, `edgetpu:0`; None takes the backend's default.
        stand_in: run on the manifest's stand-in where the target's own device is absent. Never implied.

    Raises:
        ArtifactError and its kinds; BackendUnavailableError; IncompatibleArtifactError; InputError.
    """
    # Resolved once: behind a link such as STORE/active another artifact may appear at any moment.
    path = Path(path).resolve()
    for point in entry_points(OPENER_GROUP):
        if (path / f"{point.name}.json").is_file() and not (path / MANIFEST).exists():
            opened: Inspector = point.load()(path, device=device)
            return opened
    artifact = Artifact.open(path)
    name = artifact.backend
    replaced = False
    if artifact.stand_in is not None:
        other, host = str(artifact.stand_in["backend"]), artifact.stand_in.get("device")
        if stand_in:
            name, device, replaced = other, device or host, True
            # A file compiled for the accelerator runs nowhere else; the one beside it does.
            file = artifact.stand_in.get("model", artifact.manifest["model"])
            artifact = Artifact(path, {**artifact.manifest, "model": file})
        elif (backend or name, device or artifact.manifest.get("device") or host) == (other, host):
            raise IncompatibleArtifactError(
                f"{path} is for {artifact.target}; {other} on {host} is only its stand-in",
                next_step="give --stand-in if that is what you want; every result will say so",
            )
    if backend is not None and backend != name:
        raise IncompatibleArtifactError(
            f"{path} is not for backend `{backend}`",
            wanted=name,
            got=backend,
            next_step=f"use --backend {name}",
        )
    session = find_backend(name).load(artifact, device or artifact.manifest.get("device"))
    if replaced:
        session.ran_on = replace(session.ran_on, stand_in=True)
    return Inspector(
        session,
        artifact.input,
        artifact.framing,
        artifact.decision,
        digest=artifact.digest,
        name=artifact.name,
        target=artifact.target,
        precision=artifact.precision,
        gate=artifact.manifest["gate"],
    )


def overlay(frame: preprocess.UInt8Array, mask: BoolArray) -> preprocess.UInt8Array:
    """The frame in RGB with the mask's outline in red: what a person looks at."""
    if frame.shape[:2] != mask.shape:
        raise InputError("frame and mask differ in size", wanted=frame.shape[:2], got=mask.shape)
    picture: preprocess.UInt8Array = preprocess.to_channels(frame, 3).copy()
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    picture[mask & ~inside] = (255, 40, 40)
    return picture
