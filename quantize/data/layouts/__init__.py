"""Readers for data sets in the folders they were published in, recognised by those folders.

Each yields the ``edge.samples.Sample`` of the native table. Adding a file here with ``TITLE``, ``NOTE`` (what was
decided that its authors did not publish), ``recognise`` and ``read`` registers a layout. Numpy and ``edge`` alone,
so that a camera that has this package reads them as well.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from edge.errors import InputError
from edge.samples import Sample


def layouts() -> list[ModuleType]:
    """The layouts of this folder, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [module for module in modules if hasattr(module, "recognise")]


def find_layout(folder: Path) -> ModuleType | None:
    """The layout that ``folder`` is in, or None.

    Raises:
        InputError: the folder looks like two of them.
    """
    if not folder.is_dir():
        return None
    found = [module for module in layouts() if module.recognise(folder)]
    if len(found) > 1:
        raise InputError(
            f"{folder} looks like several published data sets",
            wanted="one of them in a folder",
            got=", ".join(module.TITLE for module in found),
        )
    return found[0] if found else None


def samples(folder: Path) -> list[Sample] | None:
    """Read a published data set; None if ``folder`` is in no layout that is known.

    This is what ``edge.samples`` asks of the entry-point group ``edgeqc.readers``.

    Raises:
        InputError: naming the file that is missing, leaves the folder or is not in the layout.
    """
    layout = find_layout(folder)
    return None if layout is None else layout.read(folder)
