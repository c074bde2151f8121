"""The networks. Each takes (p - 128) / 128 and answers with two logits: `defect` [N, 1], `mask` [N, 1, h, w].

Adding a file here with `SIZES` and `build` registers a network under the file's name. A name with a colon is a
network of the user's own (`quantize.models.own`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from torch import nn

from edge.errors import InputError
from quantize.models import own


def names() -> list[str]:
    """The networks of this folder, as `--model` calls them."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        if hasattr(importlib.import_module(f"{__name__}.{module.name}"), "SIZES"):
            found.append(module.name.replace("_", "-"))
    return sorted(found)


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build a network from what `run.json` says under `model`.

    Args:
        config: `name`, `size`, `channels` and the network's own switches, e.g. `sample_gradient`; of a network
            of the user's own `name` and `channels` alone.

    Raises:
        InputError: no such network, size, number of channels or switch.
    """
    options = dict(config)
    name = str(options.pop("name", "sample-centric"))
    channels = int(options.pop("channels", 1))
    if channels not in (1, 3):
        raise InputError("a network takes grey or RGB", wanted="1 or 3 channels", got=channels)
    if own.is_own(name):
        if options:
            raise InputError(
                f"{', '.join(options)}: options of edgeqc's networks, and {name} is your own",
                next_step="leave them away, or decide it in the function",
            )
        return own.build(name, channels)
    size = str(options.pop("size", "small"))
    known = names()
    if name not in known:
        raise InputError(
            f"there is no network called {name!r}", wanted=f"{', '.join(known)}, or {own.FORM}", got=name
        )
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    if size not in module.SIZES:
        raise InputError(f"network {name} has no size {size!r}", wanted=", ".join(module.SIZES), got=size)
    try:
        network: nn.Module = module.build(size, channels, **options)
    except (TypeError, ValueError) as exc:
        raise InputError(f"network {name} cannot be built from this", got=f"{options}: {exc}") from exc
    return network
