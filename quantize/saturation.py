"""Of a summand whose sum is clamped, what the clamp cuts off for certain needs no place on the grid.

The sample head adds two vectors and clamps the sum to 0..6 (`quantize.models.sample_centric.SampleHead`). One of them
reached to 104 where it was looked at, so its steps were 0.8 wide, an eighth of everything that passes the clamp. But
with the other one within 10, a value beyond 16 is 6 in the end, whatever it is. Ours.
"""

from __future__ import annotations

from torch import fx

from quantize.operations import SUMS, bounds, is_clamped, readers, source
from quantize.ranges import RangeObserver
from quantize.requantization import observer_before


def saturate_summands(prepared: fx.GraphModule) -> None:
    """Shorten the ranges of a calibrated graph's clamped summands to what may pass the clamp, in place."""
    for node in prepared.graph.nodes:
        if node.target not in SUMS or not is_clamped(node):
            continue
        low, high = bounds(next(iter(node.users)))
        summands = [observer_before(prepared, node, index) for index in (0, 1)]
        for index in sorted((0, 1), key=lambda place: -_range(summands[place])):
            own, other = summands[index], summands[1 - index]
            if (
                isinstance(own, RangeObserver)
                and isinstance(other, RangeObserver)
                and _read_alone(node, index)
            ):
                own.shorten(max(high, -low) + other.range())


def _range(observer: object) -> float:
    return observer.range() if isinstance(observer, RangeObserver) else 0.0


def _read_alone(node: fx.Node, index: int) -> bool:
    tensor = node.args[index]
    assert isinstance(tensor, fx.Node)
    return [*readers(source(tensor))] == [node]
