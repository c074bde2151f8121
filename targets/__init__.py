"""Lowering one quantized graph to devices, and proving that no verdict changed on the way.

Adding a file here that defines `NAME` and `lower` registers a target under its file's name.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, cast

from edge.errors import InputError

if TYPE_CHECKING:
    from targets.lowering import Target


def names() -> list[str]:
    """The targets of this folder. Imports every module of it, and through some of them torch."""
    modules = (
        importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    )
    return sorted(module.NAME for module in modules if _is_target(module))


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        InputError: there is none.
    """
    if name in {found.name for found in pkgutil.iter_modules(__path__)}:
        module = importlib.import_module(f"{__name__}.{name}")
        if _is_target(module):
            return cast("Target", module)
    raise InputError(f"there is no target called {name!r}", wanted=", ".join(names()), got=name)


def _is_target(module: object) -> bool:
    return hasattr(module, "NAME") and hasattr(module, "lower")
