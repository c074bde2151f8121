"""Golden vectors: frames whose answers the exporter recorded, so that a device can prove itself.

`golden.npz`: `frame_000`, `frame_001`, ... (uint8 [h, w] or [h, w, 3], sizes may differ) and, each of length
n: `input_sha256` (of a frame's encoded tiles), `defect_logit` float32, `defective` bool, `mask_area_px` (in
frame coordinates) and `output_sha256` (of the raw `defect` and `mask` bytes). Verdicts must be equal, logits
within k quantization steps; equal bytes are reported and required only on the SDK, version and processor
recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge import preprocess
from edge.errors import ArtifactError, EdgeError
from edge.inspector import Inspector
from edge.preprocess import UInt8Array

# Runtimes round ties and sums differently by a few steps (docs/quantization.md); a broken one by dozens.
TOLERANCE_STEPS = 8


@dataclass(frozen=True)
class GoldenCheck:
    """One golden frame on this device."""

    index: int
    verdict_equal: bool
    input_equal: bool
    bytes_equal: bool
    logit_difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Same framing, same verdict, logit within tolerance. Bytes are judged by `check`."""
        return self.verdict_equal and self.input_equal and self.logit_difference <= self.tolerance


def _answer(inspector: Inspector, frame: UInt8Array) -> dict[str, Any]:
    tiles, _ = preprocess.frame_to_tiles(frame, inspector.input, inspector.framing)
    inputs, outputs = hashlib.sha256(), hashlib.sha256()
    for tile in tiles:
        encoded = preprocess.encode(tile, inspector.input)
        inputs.update(encoded.tobytes())
        raw = inspector.session.run({inspector.session.inputs[0].name: encoded})
        for name in ("defect", "mask"):
            outputs.update(np.ascontiguousarray(raw[name]).tobytes())
    inspection = inspector.inspect(frame)
    return {
        "input_sha256": inputs.hexdigest(),
        "output_sha256": outputs.hexdigest(),
        "defect_logit": np.float32(inspection.score),
        "defective": inspection.defective,
        "mask_area_px": int(inspection.mask.sum()),
    }


def write(inspector: Inspector, frames: Sequence[UInt8Array], file: Path) -> None:
    """Record the answers of `inspector` on `frames` (at least one) in `file`."""
    answers = [_answer(inspector, frame) for frame in frames]
    members: dict[str, npt.NDArray[Any]] = {f"frame_{i:03}": frame for i, frame in enumerate(frames)}
    members.update({key: np.array([answer[key] for answer in answers]) for key in answers[0]})
    with file.open("wb") as stream:
        np.savez_compressed(stream, **members)  # type: ignore[arg-type]  # numpy's stub mistakes ** for flags


def tolerance(inspector: Inspector, facts: Mapping[str, Any]) -> float:
    """Largest logit difference allowed: absolute plus k quantization steps of the `defect` output."""
    scale = next((o.scale for o in inspector.session.outputs if o.name == "defect"), None)
    step = scale or facts.get("step") or 0.0  # null for float outputs
    return float(facts.get("absolute") or 0.0) + float(facts.get("steps", TOLERANCE_STEPS)) * float(step)


def check(inspector: Inspector, folder: Path, facts: Mapping[str, Any]) -> list[GoldenCheck]:
    """Run the golden frames of the artifact in `folder` and compare.

    Args:
        facts: the manifest's `golden` object: file, steps, absolute, step, made_on.

    Raises:
        ArtifactError: `golden.npz` is not readable.
    """
    file = folder / str(facts.get("file", "golden.npz"))
    try:
        with np.load(file, allow_pickle=False) as members:
            golden = {key: members[key] for key in members.files}
        frames = [golden[f"frame_{i:03}"] for i in range(len(golden["defect_logit"]))]
        if not frames:
            raise ValueError("no frame")
        allowed = tolerance(inspector, facts)
        checks = []
        for index, frame in enumerate(frames):
            answer = _answer(inspector, frame)
            checks.append(
                GoldenCheck(
                    index,
                    verdict_equal=bool(answer["defective"]) == bool(golden["defective"][index]),
                    input_equal=answer["input_sha256"] == str(golden["input_sha256"][index]),
                    bytes_equal=answer["output_sha256"] == str(golden["output_sha256"][index]),
                    logit_difference=abs(
                        float(answer["defect_logit"]) - float(golden["defect_logit"][index])
                    ),
                    tolerance=allowed,
                )
            )
        return checks
    except EdgeError:
        raise
    except Exception as exc:  # numpy and zipfile raise a dozen kinds on damaged bytes
        raise ArtifactError(
            f"{file} is not readable as golden vectors",
            got=f"{type(exc).__name__}: {exc}",
            next_step="export again",
        ) from exc


def bytes_required(inspector: Inspector, facts: Mapping[str, Any]) -> bool:
    """True where the recorded SDK, version, device and processor are the ones we run on."""
    made_on = facts.get("made_on") or {}
    here = asdict(inspector.session.ran_on)
    return all(made_on.get(key) == here[key] for key in ("sdk", "version", "device", "processor"))
