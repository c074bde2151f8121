"""`edgeqc doctor`: which backends and accelerators work here, and the exact fix for those that do not."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata, util
from typing import Any

from edge.backend import Probe, backends, find_backend, processor_family
from edge.backends._edgetpu import (
    GOOGLE_PYCORAL,
    INSTALL,
    OTHER_PYCORAL,
    installed_pycoral,
    open_library,
)


def examine(required: Sequence[str] = ()) -> dict[str, Any]:
    """Probe every backend.

    Args:
        required: backends that must work.

    Returns:
        JSON-able: `machine`, `backends` (name, usable, required, reason, sdk, version, devices, fix), `notes`
        (what else is wrong, each with its fix), `healthy` (every required backend is usable).

    Raises:
        BackendUnavailableError: a required name is no backend's.
    """
    for name in required:
        find_backend(name)
    rows = [_row(name, backend.probe(), name in required) for name, backend in sorted(backends().items())]
    return {
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "processor": processor_family(),
            "edgeqc": _own_version(),
        },
        "backends": rows,
        "notes": [note for note in (_wrong_pycoral(), _no_edge_tpu(), _missing_pillow()) if note is not None],
        "healthy": all(row["usable"] for row in rows if row["required"]),
    }


def table(facts: dict[str, Any]) -> str:
    """The examination for people."""
    machine = facts["machine"]
    lines = [
        f"edgeqc {machine['edgeqc']}, Python {machine['python']}",
        machine["processor"],
        machine["system"],
        "",
    ]
    for row in facts["backends"]:
        mark = "ok     " if row["usable"] else "MISSING" if row["required"] else "-      "
        found = (
            f"{row['sdk']} {row['version']}; {', '.join(row['devices'])}" if row["usable"] else row["reason"]
        )
        lines.append(f"{mark}  {row['name']:10}{found}")
        if not row["usable"] and row["fix"]:
            lines.append(f"{'':19}fix: {row['fix']}")
    for note in facts["notes"]:
        lines += ["", f"note: {note['what']}", f"      fix: {note['fix']}"]
    return "\n".join(lines)


def _row(name: str, probe: Probe, required: bool) -> dict[str, Any]:
    return {
        "name": name,
        "usable": probe.usable,
        "required": required,
        "reason": probe.reason,
        "sdk": probe.sdk,
        "version": probe.version,
        "devices": list(probe.devices),
        "fix": probe.fix,
    }


def _own_version() -> str:
    try:
        return metadata.version("edgeqc")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _wrong_pycoral() -> dict[str, str] | None:
    if installed_pycoral() != OTHER_PYCORAL:
        return None
    return {
        "what": f"the installed `pycoral` is not {GOOGLE_PYCORAL} but {OTHER_PYCORAL}; "
        "it has nothing to do with the Edge TPU",
        "fix": 'pip uninstall pycoral && pip install "edgeqc[litert]"',
    }


def _no_edge_tpu() -> dict[str, str] | None:
    """LiteRT alone runs on the processor; the accelerator needs Google's library too."""
    if open_library() is not None:
        return None
    return {"what": "no Edge TPU can be used: libedgetpu.so.1 is not installed", "fix": INSTALL}


def _missing_pillow() -> dict[str, str] | None:
    if util.find_spec("PIL") is not None:
        return None
    return {
        "what": "Pillow is not installed, so only .npy, .pgm and .ppm images can be read",
        "fix": 'pip install "edgeqc[images]"',
    }
