"""`predictions.npz`, the common coin of parity: written on any machine, cameras included, compared anywhere.

Members (all readable with `numpy.load(..., allow_pickle=False)`):

- `meta`: JSON text: format, name, target, precision, ran_on, source_digest, threshold, mask_threshold;
- `sample_id`, `image_sha256`: text [n];
- `defect_logit`: float32 [n];
- `mask_size`: int32 [n, 2], height and width in frame pixels;
- `mask_bits`: uint8, all masks one after the other, each row-major and packed by `numpy.packbits` on its own;
- `latency_ms`: float32 [n].
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError, FormatVersionError, InputError
from edge.folders import jsonable, sha256, write_atomically
from edge.inspector import Inspector, inspect_file
from edge.preprocess import BoolArray
from edge.progress import progress
from edge.samples import Sample

FORMAT = "edgeqc-predictions/1"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores and masks of a list of samples, and where they were computed.

    Attributes:
        sample_ids, image_sha256: one text per sample.
        defect_logits: float32 [n].
        masks: bool arrays in frame coordinates, packed on demand.
        latency_ms: float32 [n].
        meta: name, target (null for a RUN), precision, ran_on, source_digest, threshold, mask_threshold.
    """

    sample_ids: tuple[str, ...]
    image_sha256: tuple[str, ...]
    defect_logits: npt.NDArray[np.float32]
    masks: tuple[BoolArray, ...]
    latency_ms: npt.NDArray[np.float32]
    meta: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def threshold(self) -> float:
        """Verdict threshold tau in logits."""
        return float(self.meta["threshold"])

    @property
    def verdicts(self) -> BoolArray:
        """True where the sample was called defective, as `Inspector` compares: in double precision."""
        return np.asarray(self.defect_logits.astype(np.float64) >= self.threshold)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        stream = io.BytesIO()
        bits = [np.packbits(mask) for mask in self.masks]
        np.savez_compressed(
            stream,
            meta=np.array(json.dumps(jsonable({"format": FORMAT, **self.meta}))),
            sample_id=np.array(self.sample_ids, dtype=str),
            image_sha256=np.array(self.image_sha256, dtype=str),
            defect_logit=self.defect_logits.astype(np.float32),
            mask_size=np.array([mask.shape for mask in self.masks], np.int32).reshape(-1, 2),
            mask_bits=np.concatenate(bits) if bits else np.zeros(0, np.uint8),
            latency_ms=self.latency_ms.astype(np.float32),
        )
        write_atomically(Path(path), stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read the file.

        Raises:
            InputError: not there, damaged, or members that do not fit together.
            FormatVersionError: written in another format version.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"there is no prediction file {path}")
        try:
            with np.load(path, allow_pickle=False) as members:
                meta = json.loads(str(members["meta"]))
                found = meta.get("format") if isinstance(meta, dict) else None
                if found != FORMAT:
                    raise FormatVersionError(f"{path} has an unknown format", wanted=FORMAT, got=found)
                masks = tuple(_unpack(members["mask_bits"], members["mask_size"]))
                predictions = cls(
                    tuple(map(str, members["sample_id"])),
                    tuple(map(str, members["image_sha256"])),
                    members["defect_logit"].astype(np.float32),
                    masks,
                    members["latency_ms"].astype(np.float32),
                    meta,
                )
                float(meta["threshold"])
                if predictions.defect_logits.ndim != 1 or predictions.latency_ms.ndim != 1:
                    raise ValueError("scores and latencies are not lists")
        except EdgeError:
            raise
        except Exception as exc:  # numpy and zipfile raise a dozen kinds on damaged bytes
            raise InputError(
                f"{path} is not a readable prediction file",
                got=f"{type(exc).__name__}: {exc}",
                next_step="write it again with `edgeqc predict`",
            ) from exc
        lengths = {
            len(predictions.image_sha256),
            len(predictions.defect_logits),
            len(masks),
            len(predictions),
        }
        if lengths != {len(predictions)}:
            raise InputError(f"{path} is inconsistent", got=f"members of {sorted(lengths)} samples")
        return predictions


def _unpack(bits: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int32]) -> Iterator[BoolArray]:
    offset = 0
    for height, width in sizes.tolist():
        length = -(-height * width // 8)
        if height < 0 or width < 0 or offset + length > len(bits):
            raise ValueError("mask sizes and mask bits do not fit together")
        yield (
            np.unpackbits(bits[offset : offset + length], count=height * width)
            .reshape(height, width)
            .astype(bool)
        )
        offset += length


def predict(inspector: Inspector, samples: list[Sample], *, what: str = "predict") -> Predictions:
    """Run `inspector` over the image files of `samples`, through the very path a camera frame takes."""
    scores, masks, digests, latencies = [], [], [], []
    for sample in progress(samples, what):
        _, inspection = inspect_file(inspector, sample.image)
        scores.append(inspection.score)
        masks.append(inspection.mask)
        digests.append(sha256(sample.image))
        latencies.append(inspection.timings.latency_ms)
    return Predictions(
        tuple(sample.id for sample in samples),
        tuple(digests),
        np.array(scores, np.float32),
        tuple(masks),
        np.array(latencies, np.float32),
        {
            "name": inspector.name,
            "target": inspector.target,
            "precision": inspector.precision,
            "gate": inspector.gate,
            "ran_on": vars(inspector.session.ran_on).copy(),
            "source_digest": inspector.digest,
            "threshold": inspector.decision.threshold,
            "mask_threshold": inspector.decision.mask_threshold,
        },
    )
