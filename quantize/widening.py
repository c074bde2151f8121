"""Widening: the channels whose rounding does most damage are computed several times, each time rounded elsewhere.

n copies of a channel whose biases differ by parts of a step are rounded at n places in turn; their mean, which the
convolutions that read them form for nothing (each copy is read with an n-th of the weight), lies on a grid n times as
fine. It is dither (Schuchman, 1964) with known shifts, over copies in place of over time. The shifts of a channel sum
up to 0, so the network's function stays what it was, but where a clamp cuts copies off within half a step of its end.

Every device runs the result for what it is, ordinary convolutions with some more channels.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quantize.families import Family, find_families
from quantize.noise import find_steps, rounding_noise
from quantize.operations import CLAMPS, CONVOLUTIONS, SUMS, bounds, written
from quantize.parameters import bias, bias_node, is_depthwise, macs, refresh, set_parameter, weight
from quantize.recipe import GridRecipe

# Images that the damage of a channel is measured on, and that find the steps for it.
NOISE_IMAGES, STEP_IMAGES = 16, 32
# Of the search for shifts that suit all tensors of a family.
TRIES, ROUNDS = 64, 3


@dataclass(frozen=True)
class Widened:
    """What was done.

    Attributes:
        channels: how many were added, by the first node of their family.
        mac_share: what they cost, of the multiply-accumulates of before.
    """

    channels: Mapping[str, int]
    mac_share: float


@torch.no_grad()
def widen(graph: fx.GraphModule, images: Sequence[Tensor], recipe: GridRecipe) -> Widened:
    """Copy the most damaging channels of a captured graph, in place.

    Args:
        images: float32 [1, C, H, W] each.
        recipe: of the grid that the graph is to be put on.
    """
    families = [
        family
        for family in find_families(graph)
        if all(bias_node(convolution) is not None for convolution in family.convolutions)
    ]
    few = images[:: -(-len(images) // NOISE_IMAGES)]
    steps = find_steps(graph, images[:: -(-len(images) // STEP_IMAGES)], recipe)
    noise = rounding_noise(graph, few, steps)
    costs = [family.channel_macs(graph) for family in families]
    total = sum(macs(graph, node) for node in graph.graph.nodes if node.target in CONVOLUTIONS)
    damages = [
        sum((noise[node] for node in family.nodes if node in noise), torch.zeros(family.channels))
        for family in families
    ]
    counts = plan(damages, costs, recipe.widening * total)
    passed = _share_passed(graph, few, {node for place in counts for node in families[place].nodes})
    for place, wanted in counts.items():
        _Copies(graph, families[place], wanted, steps, noise).make(passed)
    refresh(graph)
    added = {place: sum(wanted.values()) - len(wanted) for place, wanted in counts.items()}
    return Widened(
        {families[place].nodes[0].name: count for place, count in added.items()},
        sum(count * costs[place] for place, count in added.items()) / max(1, total),
    )


def plan(damages: Sequence[Tensor], costs: Sequence[int], budget: float) -> dict[int, dict[int, int]]:
    """By place of a family and channel, how many times it is to be there, where that is more than once.

    n copies leave 1 / n^2 of a channel's damage; the copies that take away most for what they cost come first.

    Args:
        damages: [C] of each family.
        costs: of one channel of each family.
        budget: what all copies may cost.
    """
    counts: dict[int, dict[int, int]] = {}
    heap: list[tuple[float, int, int, float]] = []
    for place, damage in enumerate(damages):
        for channel, part in enumerate(damage.tolist()):
            heapq.heappush(heap, (-part * 3 / 4 / costs[place], place, channel, part))
    while heap:
        gain, place, channel, part = heapq.heappop(heap)
        budget -= costs[place]
        if budget < 0 or not gain:
            break
        count = counts.setdefault(place, {}).get(channel, 1) + 1
        counts[place][channel] = count
        gain = part * (1 / count**2 - 1 / (count + 1) ** 2) / costs[place]
        heapq.heappush(heap, (-gain, place, channel, part))
    return counts


def left_of(phases: Tensor) -> Tensor:
    """What share of the rounding error's power the mean of n copies keeps, [...], of `phases` in steps, [..., n].

    Of values that are spread evenly over a step: errors of two copies a part d of a step from each other have the
    correlation 1 - 6 d (1 - d).
    """
    apart = (phases[..., :, None] - phases[..., None, :]).remainder(1.0)
    return (1 - 6 * apart * (1 - apart)).mean((-1, -2))


class _Copies:
    """The copies of one family.

    Attributes:
        rows: the channel that each channel is of, [C and more].
        times: how many there are of it.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        family: Family,
        wanted: Mapping[int, int],
        steps: Mapping[fx.Node, tuple[float, int]],
        noise: Mapping[fx.Node, Tensor],
    ) -> None:
        self.graph, self.family, self.steps, self.noise = graph, family, steps, noise
        extra = [channel for channel, count in wanted.items() for _ in range(count - 1)]
        self.rows = torch.tensor([*range(family.channels), *extra])
        self.times = torch.ones(family.channels)
        self.dither = {node: torch.zeros(len(self.rows)) for node in family.convolutions}
        generator = torch.Generator().manual_seed(0)
        for channel, count in wanted.items():
            self.times[channel] = count
            places = torch.nonzero(self.rows == channel).flatten()
            for node, shifts in self._shifts(channel, count, generator).items():
                self.dither[node][places] = shifts

    def make(self, passed: Mapping[fx.Node, Tensor]) -> None:
        """Write them into the graph; `passed` as `_share_passed` says."""
        shifts: dict[fx.Node, Tensor] = {}
        for node in self.family.nodes:
            shifts[node] = self._shift(node, shifts)
            if node.target not in CONVOLUTIONS:
                continue
            kernel, offset, place = (
                weight(self.graph, node)[self.rows],
                bias(self.graph, node),
                bias_node(node),
            )
            assert offset is not None and place is not None
            offset = offset[self.rows] + self.dither[node]
            if is_depthwise(node):
                # What the dither of the input does where no clamp cuts it off is taken back.
                before = node.all_input_nodes[0]
                offset -= shifts[before] * kernel.sum((1, 2, 3)) * passed[before][self.rows]
            set_parameter(self.graph, node.all_input_nodes[1], kernel)
            set_parameter(self.graph, place, offset)
        for reader in self.family.readers:
            kernel = weight(self.graph, reader)[:, self.rows] / self.times[self.rows].view(1, -1, 1, 1)
            set_parameter(self.graph, reader.all_input_nodes[1], kernel)

    def _shift(self, node: fx.Node, shifts: Mapping[fx.Node, Tensor]) -> Tensor:
        """How far a tensor's copies are shifted: by its convolution, or by what it is made of."""
        if node.target in CONVOLUTIONS:
            return self.dither[node]
        if node.target in SUMS:
            one, other = node.all_input_nodes
            return shifts[one] + shifts[other]
        return shifts[node.all_input_nodes[0]]

    def _shifts(self, channel: int, count: int, generator: torch.Generator) -> dict[fx.Node, Tensor]:
        """Shifts of the copies of one channel by each convolution, [count], that spread over a step in all tensors.

        One tensor is spread best by even parts of a step. A sum adds the shifts of what it reads: there, orders of the
        parts, and other shifts that sum up to 0, are tried in turn for each convolution.
        """
        even = (torch.arange(count) - (count - 1) / 2) / count
        found = {node: even * self._step(node) for node in self.family.convolutions}
        if not any(node.target in SUMS for node in self.family.nodes):
            return found
        for _ in range(ROUNDS):
            for node in found:
                free = torch.rand(TRIES, count, generator=generator)
                orders = even[free.argsort(1)]
                tried = torch.cat([even[None], orders, free - free.mean(1, keepdim=True)]) * self._step(node)
                tried = torch.cat([found[node][None], tried])
                left = self._left(channel, {**{n: s[None] for n, s in found.items()}, node: tried})
                found[node] = tried[left.argmin()]
        return found

    def _left(self, channel: int, by_convolution: Mapping[fx.Node, Tensor]) -> Tensor:
        """The damage that is left of a channel, [tries], for shifts [tries or 1, count] of each convolution."""
        shifts: dict[fx.Node, Tensor] = {}
        left = torch.zeros(())
        for node in self.family.nodes:
            if node.target in CONVOLUTIONS:
                shifts[node] = by_convolution[node]
            else:
                shifts[node] = self._shift(node, shifts)
            if node in self.noise:
                left = left + self.noise[node][channel] * left_of(shifts[node] / self.steps[node][0])
        return left

    def _step(self, convolution: fx.Node) -> float:
        return self.steps[written(convolution)][0]


def _share_passed(
    graph: fx.GraphModule, images: Sequence[Tensor], tensors: Collection[fx.Node]
) -> dict[fx.Node, Tensor]:
    """By tensor, the share of each channel's values, [C], that lie between the bounds of its clamp, if it has one."""
    watched = _Passed(graph, tensors)
    for image in images:
        watched.run(image)
    return {tensor: share / len(images) for tensor, share in watched.shares.items()}


class _Passed(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, tensors: Collection[fx.Node]) -> None:
        super().__init__(graph)
        self.tensors = tensors
        self.shares: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n in self.tensors and isinstance(value, Tensor):
            low, high = bounds(n) if n.target in CLAMPS else (-torch.inf, torch.inf)
            share = ((value > low) & (value < high)).float().mean((0, 2, 3))
            self.shares[n] = self.shares.get(n, torch.zeros_like(share)) + share
        return value
