"""`local:PATH`: the slot store is a folder of this machine."""

from __future__ import annotations

from pathlib import Path

from firmware_bridge import flash as installation
from firmware_bridge.flash import Change
from firmware_bridge.transports import Order


def flash(bundle: Path, location: str, keyring: Path, order: Order) -> Change:
    """Install `bundle` into the slot store at the path `location`."""
    return installation.flash(
        bundle,
        Path(location),
        keyring,
        compatible=order.compatible,
        device=order.device,
        stand_in=order.stand_in,
        allow_rejected=order.allow_rejected,
    )
