"""Where compiled engines are kept between runs: the user's cache folder, never the working directory."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return `$XDG_CACHE_HOME/edgeqc/NAME` (default `~/.cache/edgeqc/NAME`), created when absent."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "edgeqc" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
