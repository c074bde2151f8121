"""Ways to a device, one file each: the part of `local:PATH` before the colon is the module's name.

A transport module defines `flash(bundle, location, keyring, order) -> Change`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from edge.errors import InputError
from firmware_bridge.flash import Change


@dataclass(frozen=True)
class Order:
    """What the sender wants of the device; see `firmware_bridge.flash.flash`."""

    compatible: str | None = None
    device: str | None = None
    stand_in: bool = False
    allow_rejected: bool = False


class Transport(Protocol):
    """What a transport module offers."""

    def flash(self, bundle: Path, location: str, keyring: Path, order: Order) -> Change:
        """Install `bundle` at `location`."""


def find_transport(address: str) -> tuple[Transport, str]:
    """Split `SCHEME:LOCATION` and return the transport and the location.

    Raises:
        InputError: no such scheme, or no location.
    """
    known = sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )
    scheme, colon, location = address.partition(":")
    if scheme not in known or not colon or not location:
        raise InputError(
            "unknown place to install to",
            wanted=" or ".join(f"{name}:PLACE" for name in known),
            got=repr(address),
        )
    return cast(Transport, importlib.import_module(f"{__name__}.{scheme}")), location
