"""Requantization without ties: every correct runtime computes the very same integers.

An int8 layer sums whole numbers exactly, multiplies the sum by a ratio of scales, and rounds. Runtimes differ in the
rounding alone: half to even, half up, half away from zero; in float32, or in fixed point with a multiplier of 31 bits.
Each agrees with all the others but where the product lies on a tie, or nearer to one than the runtime's own error. A
ratio of freely chosen scales comes that near for a few values of every map, and sixty layers make of them as large a
difference as that to full precision.

So scales are chosen here such that each ratio is a power of two over an *odd whole number* D. A whole number n times
2^k / D is never a tie, for that would need n * 2^(k + 1) = D * (an odd number); and its distance to one is at least
1 / (2 D) of a step, far more than what float32 or fixed point loses.

- A convolution's accumulator counts steps of (input scale * weight scale): each output channel's weight scale is made
  to give its D, at most 2 / `LEAST_DIVISOR` coarser than it had to be, and its bias is a whole number of those steps.
- Tensors that sums connect get whole multiples of one unit as scales, those that a sum writes odd ones.
- A mean of N values, and a product, get the scale that their D asks for.

What cannot be had (a tensor with two such wishes, a fixed scale) stays as it was: nothing breaks, there the runtimes'
own rounding decides as it does everywhere without this. Ours; the closest kin are "dyadic" ratios (Yao et al.,
"HAWQ-v3", ICML 2021), which make integer-only arithmetic exact, and ties as frequent as can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.observer import ObserverBase, PerChannelMinMaxObserver

from quantize.operations import CONVOLUTIONS, OWN_SCALE, PRODUCTS, SUMS, written
from quantize.ranges import LEVELS, RangeObserver

# A divisor of at least so much wastes less than a hundredth of a weight's resolution.
LEAST_DIVISOR = 255
# And no more than this: a channel that its bias decides alone would count so finely that float32 cannot follow.
LARGEST_DIVISOR = 4095
# The largest scale among tensors that sums connect, in units: a tensor of a sixteenth of that still is met within 3 %,
# and fixed-point kernels, which hold a ratio in about 20 bits, stay an order of magnitude inside of 1 / (2 D).
LARGEST_MULTIPLE = 1023
# A tensor of fewer units than this would lose more than an eighth of its resolution: it keeps its scale.
LEAST_MULTIPLE = 16


def settle_activations(prepared: fx.GraphModule) -> None:
    """Choose the scales of a calibrated graph's activations anew, none finer than it was, in place."""
    settled = _settle_sums(prepared)
    for node in prepared.graph.nodes:
        observer = observer_behind(prepared, node)
        if not isinstance(observer, RangeObserver) or id(observer) in settled:
            continue
        if node.target in OWN_SCALE:
            read = observer_before(prepared, node, 0)
            if read is not None:
                step = scale_of(read) / _averaged(node)
                observer.fix(step * odd_above(scale_of(observer) / step))
                settled.add(id(observer))
        elif node.target in PRODUCTS:
            both = [observer_before(prepared, node, index) for index in (0, 1)]
            if all(both):
                step = math.prod(scale_of(one) for one in both if one is not None)
                observer.fix(step * odd_above(scale_of(observer) / step))
                settled.add(id(observer))


def weight_scales(least: Tensor, read: float, written_scale: float) -> Tensor:
    """The scales of a convolution's weights, for each output channel.

    Args:
        least: scales that the weights need at least, any shape, positive.
        read, written_scale: scales of the tensors that the convolution reads and writes.

    Returns:
        float64 scales s >= `least`, with read * s / written_scale = 2^k / D for whole k >= 0 and odd D.
    """
    room = (written_scale / (read * least.double())).clamp_max(LARGEST_DIVISOR + 0.5)
    power = torch.exp2(torch.ceil(torch.log2(LEAST_DIVISOR / room)).clamp_min(0))
    divisor = torch.floor((room * power - 1) / 2) * 2 + 1
    return written_scale * power / (read * divisor)


def settle_weights(prepared: fx.GraphModule, levels: int = LEVELS) -> None:
    """Choose the scales of weights that were observed, in place; for weights that are rounded to the nearest step.

    Args:
        levels: the largest weight in steps.
    """
    for node in prepared.graph.nodes:
        scales = convolution_scales(prepared, node)
        if scales is not None:
            observer = observer_before(prepared, node, 1)
            assert isinstance(observer, PerChannelMinMaxObserver)
            least = observer.calculate_qparams()[0] * (LEVELS / levels)
            fix_weights(observer, weight_scales(least, *scales))


def settle_biases(prepared: fx.GraphModule) -> None:
    """Round the biases to whole steps of their convolution's accumulator, in place."""
    for node in prepared.graph.nodes:
        scales = convolution_scales(prepared, node)
        offset = node.args[2] if scales is not None and len(node.args) > 2 else None
        if scales is not None and isinstance(offset, fx.Node):
            observer = observer_before(prepared, node, 1)
            assert observer is not None
            step = observer.calculate_qparams()[0].double() * scales[0]  # type: ignore[no-untyped-call]
            values = _attribute(prepared, str(offset.target))
            with torch.no_grad():
                values.copy_((values.double() / step).round() * step)


def convolution_scales(prepared: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """Scales of what a convolution reads and writes; None for other nodes, and where one of its tensors is float."""
    if node.target not in CONVOLUTIONS:
        return None
    read, weight, behind = (
        observer_before(prepared, node, 0),
        observer_before(prepared, node, 1),
        observer_behind(prepared, node),
    )
    if read is None or weight is None or behind is None:
        return None
    return scale_of(read), scale_of(behind)


def observer_before(prepared: fx.GraphModule, node: fx.Node, index: int) -> ObserverBase | None:
    """What observes an argument of `node`; None where it stays float."""
    return _observer(prepared, _tensor(node, index))


def observer_behind(prepared: fx.GraphModule, node: fx.Node) -> ObserverBase | None:
    """What observes the tensor that the layer of `node` writes; None where it stays float."""
    found = (_observer(prepared, reader) for reader in written(node).users)
    return next((observer for observer in found if observer is not None), None)


def scale_of(observer: ObserverBase) -> float:
    """Of an activation."""
    scale, _ = observer.calculate_qparams()  # type: ignore[no-untyped-call]
    return float(scale)


def fix_weights(observer: PerChannelMinMaxObserver, scale: Tensor) -> None:
    """From now on these are a weight's scales."""
    scale = scale.flatten().float()
    observer.min_val, observer.max_val = -LEVELS * scale, LEVELS * scale


def odd_above(value: float) -> int:
    """The least odd whole number that is no less, up to what rounding makes of an exact one."""
    return 2 * math.ceil((value * (1 - 1e-6) - 1) / 2) + 1


def _settle_sums(prepared: fx.GraphModule) -> set[int]:
    """Settle what sums read and write; the ids of those observers."""
    settled: set[int] = set()
    for members, sums in _connected(prepared):
        settled |= {id(observer) for observer in members}
        free = [observer for observer in members if isinstance(observer, RangeObserver)]
        fixed = {scale_of(observer) for observer in members if not isinstance(observer, RangeObserver)}
        if not free or len(fixed) > 1:
            continue
        unit = max(map(scale_of, members)) / LARGEST_MULTIPLE
        for scale in fixed:
            unit = scale / max(1, round(scale / unit))
        for observer in free:
            multiple = scale_of(observer) / unit
            if multiple < LEAST_MULTIPLE:
                continue
            whole = odd_above(multiple) if id(observer) in sums else math.ceil(multiple * (1 - 1e-6))
            observer.fix(unit * whole)
    return settled


def _connected(prepared: fx.GraphModule) -> Iterator[tuple[list[ObserverBase], set[int]]]:
    """Observers of tensors that sums connect, and the ids of those that a sum writes."""
    parents: dict[int, int] = {}
    found: dict[int, ObserverBase] = {}
    sums: set[int] = set()

    def root(key: int) -> int:
        while parents[key] != key:
            key = parents[key]
        return key

    for node in prepared.graph.nodes:
        if node.target not in SUMS:
            continue
        members = [
            observer_before(prepared, node, 0),
            observer_before(prepared, node, 1),
            observer_behind(prepared, node),
        ]
        if any(member is None for member in members):
            continue
        keys = [id(member) for member in members]
        for key, member in zip(keys, members):
            assert member is not None
            parents.setdefault(key, key)
            found[key] = member
        for key in keys[1:]:
            parents[root(key)] = root(keys[0])
        sums.add(keys[-1])
    together: dict[int, list[ObserverBase]] = {}
    for key, observer in found.items():
        together.setdefault(root(key), []).append(observer)
    for observers in together.values():
        yield observers, sums


def _averaged(mean: fx.Node) -> int:
    """How many values go into one of a mean."""
    return math.prod(_observed(mean, 0).meta["val"].shape) // math.prod(mean.meta["val"].shape)


def _tensor(node: fx.Node, index: int) -> fx.Node:
    tensor = node.args[index]
    assert isinstance(tensor, fx.Node)
    return tensor


def _observed(node: fx.Node, index: int) -> fx.Node:
    """The tensor behind whose observer `node` reads."""
    tensor = _tensor(node, index)
    return tensor.all_input_nodes[0] if tensor.op == "call_module" else tensor


def _observer(prepared: fx.GraphModule, node: fx.Node) -> ObserverBase | None:
    if node.op != "call_module":
        return None
    module = prepared.get_submodule(str(node.target))
    return module if isinstance(module, ObserverBase) else None


def _attribute(prepared: fx.GraphModule, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    value: Any = getattr(prepared.get_submodule(path), last)
    assert isinstance(value, Tensor)
    return value
