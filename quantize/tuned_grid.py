"""`grid.safetensors` of a RUN: the integer grid that quantization-aware training tuned, beside the weights as trained.

```
weight/PARAMETER   weights and biases, float32; weights are multiples of their scale
scale/OBSERVER     float32, one value, or one for each output channel of a weight
```

The names are the graph's, so the file belongs to one network and one version of torch (`torch` in its metadata).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

from edge.errors import ArtifactError, FormatVersionError
from quantize.grid import CalibratedGrid, parameters, prepare
from quantize.ranges import LEVELS, RangeObserver

if TYPE_CHECKING:
    from torch import nn

TRAINED = "trained"
WEIGHT, SCALE = "weight/", "scale/"


def grid_state(prepared: fx.GraphModule) -> dict[str, Tensor]:
    """What the file holds of a calibrated graph."""
    weights = {WEIGHT + name: value.detach().clone() for name, value in prepared.named_parameters()}
    return weights | {SCALE + name: _scale(observer) for name, observer in _observers(prepared)}


def set_grid_state(prepared: fx.GraphModule, state: dict[str, Tensor]) -> None:
    """Give a graph without calibration the weights and scales of `grid_state`.

    Raises:
        KeyError: the graph has a parameter or an observer that `state` does not name.
    """
    with torch.no_grad():
        for name, value in prepared.named_parameters():
            value.copy_(state[WEIGHT + name])
    for name, observer in _observers(prepared):
        end = state[SCALE + name] * LEVELS
        if isinstance(observer, RangeObserver):
            observer.fix(float(end))
        else:
            observer.min_val, observer.max_val = -end, end


def save_grid(file: Path, state: dict[str, Tensor], count: int) -> None:
    """Write `grid.safetensors`; `count` images set its ranges."""
    from safetensors.torch import save_file

    facts = {"torch": torch.__version__, "count": str(count)}
    save_file({name: value.contiguous() for name, value in state.items()}, file, facts)
    file.chmod(0o644)


def load_grid(file: Path, model: nn.Module, input_shape: tuple[int, int, int]) -> CalibratedGrid:
    """The grid of a RUN that was tuned.

    Args:
        model: the RUN's network, batch norm folded.

    Raises:
        ArtifactError: the file is damaged or of another network.
        FormatVersionError: the graph of this version of torch has other names.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(file, "pt") as opened:  # type: ignore[no-untyped-call]
            facts = opened.metadata() or {}
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{file} cannot be read", got=str(error), next_step="tune the RUN again (`edgeqc train --qat`)"
        ) from error
    prepared = prepare(model, input_shape)
    wanted = {WEIGHT + name for name, _ in prepared.named_parameters()}
    wanted |= {SCALE + name for name, _ in _observers(prepared)}
    if wanted != set(state):
        kind = ArtifactError if facts.get("torch") == torch.__version__ else FormatVersionError
        raise kind(
            f"{file} does not fit the network's graph",
            wanted=f"the network of the RUN, on torch {facts.get('torch')}",
            got=f"torch {torch.__version__}, {len(wanted ^ set(state))} names that are only in one of the two",
            next_step="tune the RUN again with this version (`edgeqc train --qat`)",
        )
    trained = parameters(prepared)
    set_grid_state(prepared, state)
    return CalibratedGrid(prepared, input_shape, int(facts.get("count", 0)), TRAINED, TRAINED, trained)


def _scale(observer: RangeObserver | PerChannelMinMaxObserver) -> Tensor:
    scale, _ = observer.calculate_qparams()
    return scale.detach().float().flatten().clone()


def _observers(prepared: fx.GraphModule) -> list[tuple[str, RangeObserver | PerChannelMinMaxObserver]]:
    """Those that have something to remember: the input's is the same in every network."""
    return [
        (name, module)
        for name, module in prepared.named_modules()
        if isinstance(module, (RangeObserver, PerChannelMinMaxObserver))
    ]
