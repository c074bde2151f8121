"""The artifact folder: `manifest.json`, model files, `golden.npz`, `gate.json` (format `edgeqc-artifact/1`).

The manifest is the contract between the exporter and the device; `docs/artifact.md` specifies it and
`edge/manifest.schema.json` is its JSON Schema. Fields that this version does not know are preserved.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from edge.errors import ArtifactError, DigestMismatchError, FormatVersionError, InputError, ManifestError
from edge.folders import json_bytes, sha256, write_atomically
from edge.preprocess import Framing, InputSpec

FORMAT = "edgeqc-artifact/1"
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
GATE = "gate.json"

# The manifest's digest of itself: SHA-256 of its own bytes with these 64 digits as zeros. Finds damage, such
# as one changed digit of a threshold; who wrote the file is proved by the bundle's signature.
_CHECKSUM = "manifest_sha256"
_CHECKSUM_FIELD = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"')

# What every manifest has; value: the JSON types allowed.
_REQUIRED: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "version": (str,),
    "target": (str,),
    "backend": (str,),
    "profile": (dict,),
    "precision": (str,),
    "files": (list,),
    "model": (str,),
    "input": (dict,),
    "outputs": (dict,),
    "framing": (dict,),
    "labels": (list,),
    "decision": (dict,),
    "mask_threshold": (int, float),
    "calibration": (dict, type(None)),
    "reference": (dict,),
    "golden": (dict, type(None)),
    "gate": (dict, type(None)),
}


@dataclass(frozen=True)
class Decision:
    """Verdict = defect logit >= threshold.

    Attributes:
        threshold: tau in logits, chosen once by `train` on full-precision scores.
        rule: how it was chosen: f1, youden, fixed or risk.
        labels: names of the two verdicts, good first.
        mask_threshold: in mask logits.
    """

    threshold: float
    mask_threshold: float
    rule: str = "fixed"
    labels: tuple[str, str] = ("good", "defective")


class Artifact:
    """An artifact folder whose manifest was read and whose files were checked."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.name: str = manifest["name"]
        self.version: str = manifest["version"]
        self.target: str = manifest["target"]
        self.backend: str = manifest["backend"]
        self.precision: str = manifest["precision"]
        self.stand_in: Mapping[str, Any] | None = manifest.get("stand_in")
        try:
            if self.stand_in is not None:
                self.stand_in["backend"]
            self.input = InputSpec(
                **{field.name: manifest["input"][field.name] for field in fields(InputSpec)}
            )
            self.framing = Framing(
                **{k: v for k, v in manifest["framing"].items() if k in ("mode", "overlap")}
            )
            self.decision = Decision(
                threshold=float(manifest["decision"]["threshold"]),
                mask_threshold=float(manifest["mask_threshold"]),
                rule=str(manifest["decision"].get("rule", "fixed")),
                labels=(str(manifest["labels"][0]), str(manifest["labels"][1])),
            )
            if not math.isfinite(self.decision.threshold) or not math.isfinite(self.decision.mask_threshold):
                raise ValueError("a threshold is not finite")
            self.output_names = {key: str(manifest["outputs"][key]["name"]) for key in ("defect", "mask")}
        except (KeyError, TypeError, ValueError, IndexError, InputError) as exc:
            raise ManifestError(
                f"{path / MANIFEST} has an unusable field",
                got=f"{type(exc).__name__}: {exc}",
                next_step="export the artifact again",
            ) from exc

    @property
    def model_file(self) -> Path:
        """The file that the backend loads."""
        return self.path / str(self.manifest["model"])

    @property
    def digest(self) -> str:
        """SHA-256 of `manifest.json`, which lists the digests of all the other files."""
        return sha256(self.path / MANIFEST)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Artifact:
        """Read an artifact.

        Args:
            path: the artifact folder.
            verify: check the digest of the manifest, and size and SHA-256 of every file that it lists.

        Raises:
            ArtifactError: no folder there, or a listed file is missing.
            ManifestError, FormatVersionError, DigestMismatchError: see their classes.
        """
        folder = Path(path)
        manifest = read_manifest(folder, verify=verify)
        artifact = cls(folder, manifest)
        if verify:
            check_files(folder, manifest["files"])
        return artifact


def read_manifest(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """Read `manifest.json` and check its format, its own digest and its fields, not the files it lists."""
    file = folder / MANIFEST
    if not folder.is_dir():
        raise ArtifactError(f"there is no artifact folder at {folder}", wanted=f"a folder with {MANIFEST}")
    try:
        data = file.read_bytes()
        manifest = json.loads(data)
    except FileNotFoundError as exc:
        raise ManifestError(
            f"{folder} has no {MANIFEST}", next_step="name the folder that `edgeqc export --out` wrote"
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise ManifestError(
            f"{file} is not readable as JSON", got=str(exc), next_step="copy or export the artifact again"
        ) from exc
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), str):
        raise ManifestError(f"{file} names no format", wanted=FORMAT, got=type(manifest).__name__)
    if manifest["format"] != FORMAT:
        raise FormatVersionError(
            f"{file} has a format that this runtime does not know",
            wanted=FORMAT,
            got=manifest["format"],
            next_step="update edgeqc on this device, or export with the version that it has",
        )
    if verify:
        _check_checksum(file, data)
    for key, types in _REQUIRED.items():
        if key not in manifest or not isinstance(manifest[key], types) or isinstance(manifest[key], bool):
            raise ManifestError(
                f"{file}: field `{key}` is missing or of the wrong type",
                wanted=" or ".join(t.__name__ for t in types),
                got=type(manifest[key]).__name__ if key in manifest else "nothing",
                next_step="export the artifact again",
            )
    listed = [entry.get("path") for entry in manifest["files"] if isinstance(entry, dict)]
    stand_in = manifest.get("stand_in") or {}
    if isinstance(stand_in, dict) and stand_in.get("model", manifest["model"]) not in listed:
        raise ManifestError(f"{file}: the stand-in's model is not among `files`", got=stand_in.get("model"))
    if manifest["model"] not in listed:
        raise ManifestError(f"{file}: `model` is not among `files`", got=manifest["model"])
    return manifest


def _checksum(data: bytes, place: re.Match[bytes]) -> bytes:
    zeroed = data[: place.start(1)] + b"0" * 64 + data[place.end(1) :]
    return hashlib.sha256(zeroed).hexdigest().encode()


def _check_checksum(file: Path, data: bytes) -> None:
    places = list(_CHECKSUM_FIELD.finditer(data))
    if len(places) != 1 or _checksum(data, places[0]) != places[0][1]:
        raise DigestMismatchError(
            f"{file} is not the file that was written",
            wanted=f"`{_CHECKSUM}` equal to its own digest",
            got="another digest" if places else "no such field",
            next_step="the file was damaged or edited: copy or export the artifact again",
        )


def check_files(folder: Path, entries: list[Any]) -> None:
    """Check that every listed file lies inside `folder` and has the listed bytes."""
    for entry in entries:
        try:
            name, size_bytes, digest = str(entry["path"]), int(entry["bytes"]), str(entry["sha256"])
        except (KeyError, TypeError, ValueError) as exc:
            raise ManifestError(
                f"{folder / MANIFEST}: an entry of `files` is malformed",
                wanted="path, bytes, sha256",
                got=entry,
            ) from exc
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts or "\\" in name:
            raise ManifestError(f"{folder / MANIFEST} lists a file outside its folder", got=name)
        file = folder / relative
        if file.is_symlink() or not file.is_file():
            raise ArtifactError(
                f"{folder} lacks a file that its manifest lists",
                wanted=name,
                next_step="copy the artifact again",
            )
        got_bytes = file.stat().st_size
        if got_bytes != size_bytes:
            raise DigestMismatchError(
                f"{file} has the wrong size",
                wanted=f"{size_bytes} bytes",
                got=f"{got_bytes} bytes",
                next_step="the file was truncated or changed: copy the artifact again",
            )
        got = sha256(file)
        if got != digest:
            raise DigestMismatchError(
                f"{file} is not the file that was exported",
                wanted=f"sha256 {digest}",
                got=f"sha256 {got}",
                next_step="the file was damaged or changed: copy the artifact again",
            )


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> Artifact:
    """Write `manifest.json` last, listing every file that lies in `folder`; return the artifact.

    Args:
        facts: all manifest fields; `format`, `files` and the checksum are set here.
    """
    files = [
        {"path": file.relative_to(folder).as_posix(), "bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    ]
    known = {key: value for key, value in facts.items() if key not in ("format", "files", _CHECKSUM)}
    data = json_bytes({"format": FORMAT, **known, "files": files, _CHECKSUM: "0" * 64})
    place = next(_CHECKSUM_FIELD.finditer(data))
    write_atomically(
        folder / MANIFEST, data[: place.start(1)] + _checksum(data, place) + data[place.end(1) :]
    )
    return Artifact.open(folder)
