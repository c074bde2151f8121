"""`grid.safetensors` of a RUN: the integer grid that quantization-aware training tuned, beside the weights as trained.

```
weight/PARAMETER   weights and biases, float32; weights are multiples of their scale
scale/OBSERVER     float32, one value, or one for each output channel of a weight
```

The names are the graph's, so the file belongs to one network and one version of torch (`torch` in its metadata, beside
`format`). A widened network's tensors have more channels than those that the RUN's weights give.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

from edge.errors import ArtifactError, FormatVersionError
from quantize.grid import CalibratedGrid, capture_copy, parameters, prepare
from quantize.parameters import refresh, set_parameter
from quantize.quiet import quiet
from quantize.ranges import LEVELS, RangeObserver

if TYPE_CHECKING:
    from torch import nn

WEIGHT, SCALE = "weight/", "scale/"
# 2: tensors that are never negative have zero point -128, so their scales mean another range than in 1.
FORMAT = "2"


def grid_state(prepared: fx.GraphModule) -> dict[str, Tensor]:
    """What the file holds of a calibrated graph."""
    weights = {WEIGHT + name: value.detach().clone() for name, value in prepared.named_parameters()}
    return weights | {SCALE + name: _scale(observer) for name, observer in _observers(prepared)}


def with_grid_state(
    model: nn.Module, input_shape: tuple[int, int, int], state: dict[str, Tensor], batch: int = 1
) -> fx.GraphModule:
    """The graph of `model` (batch norm folded) for `batch` images, with the weights and scales of `grid_state`.

    Convolutions of `state` may have more channels than the network's, see `quantize.widening`.

    Raises:
        KeyError: the graph has other parameters or observers than `state`.
    """
    graph = capture_copy(model, input_shape, batch)
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.users:
            set_parameter(graph, node, state[WEIGHT + str(node.target)].clone())
    refresh(graph)
    prepared = prepare(graph)
    names = {SCALE + name for name, _ in _observers(prepared)}
    if names != {name for name in state if name.startswith(SCALE)}:
        raise KeyError(f"scales of other tensors: {len(names)} are in the graph")
    for name, observer in _observers(prepared):
        scale = state[SCALE + name]
        if isinstance(observer, RangeObserver):
            observer.fix(float(scale))
        else:
            observer.min_val, observer.max_val = -LEVELS * scale, LEVELS * scale
    return prepared


def save_grid(file: Path, state: dict[str, Tensor], count: int) -> None:
    """Write `grid.safetensors`; `count` images set its ranges."""
    from safetensors.torch import save_file

    facts = {"format": FORMAT, "torch": torch.__version__, "count": str(count)}
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
    if facts.get("format") != FORMAT:
        raise FormatVersionError(
            f"{file} was written by another version",
            wanted=f"format {FORMAT}",
            got=f"format {facts.get('format', '1')}",
            next_step="tune the RUN again with this version (`edgeqc train --qat`)",
        )
    try:
        with quiet():
            prepared = with_grid_state(model, input_shape, state)
    except KeyError as error:
        kind = ArtifactError if facts.get("torch") == torch.__version__ else FormatVersionError
        raise kind(
            f"{file} does not fit the network's graph",
            wanted=f"the network of the RUN, on torch {facts.get('torch')}",
            got=f"torch {torch.__version__}, {error.args[0]} is in only one of the two",
            next_step="tune the RUN again with this version (`edgeqc train --qat`)",
        ) from error
    return CalibratedGrid(prepared, input_shape, int(facts.get("count", 0)), None, parameters(prepared))


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
