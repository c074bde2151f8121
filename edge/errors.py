"""Errors of the runtime. Each speaks to the person: what happened, what was wanted, what was got, what next.

```
EdgeError
  ArtifactError: ManifestError, DigestMismatchError, FormatVersionError
  BackendError: BackendUnavailableError, IncompatibleArtifactError, InferenceError
  InputError
```

The sibling packages hang their own branches on `EdgeError` (`quantize.errors`, `targets.errors`,
`firmware_bridge.errors`). The class carries the exit code, so the command line needs no table.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeError(Exception):
    """A condition that the user can act on.

    Args:
        what: what happened, one sentence without a trailing full stop.
        wanted: what was expected.
        got: what was there instead.
        next_step: what to do next, ideally a command.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self, what: str, *, wanted: object = None, got: object = None, next_step: str | None = None
    ) -> None:
        self.what = what
        self.wanted = wanted
        self.got = got
        self.next_step = next_step
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        for label, value in (("wanted", self.wanted), ("got", self.got), ("next", self.next_step)):
            if value is not None:
                lines.append(f"  {label + ':':8}{value}")
        return "\n".join(lines)


class InputError(EdgeError):
    """A frame, a file or an argument from outside is not what the contract says."""


class ArtifactError(EdgeError):
    """An artifact folder cannot be used."""


class ManifestError(ArtifactError):
    """`manifest.json` is missing, is no JSON, or lacks what the contract asks for."""


class DigestMismatchError(ArtifactError):
    """A file's bytes are not the ones that the manifest lists."""


class FormatVersionError(ArtifactError):
    """The file was written in a format version that this runtime does not know."""


class BackendError(EdgeError):
    """A runtime or its device did not do its part."""


class BackendUnavailableError(BackendError):
    """The SDK or the accelerator is not there. Never answered by falling back to another device."""

    exit_code = 4


class IncompatibleArtifactError(BackendError):
    """The artifact is sound, but it is not for this backend, device or SDK version."""


class InferenceError(BackendError):
    """The SDK failed while running the network."""
