"""Equalisation: every channel of a tensor without a clamp fills the grid that all of them share.

A tensor has one scale, that of its widest channel, and zero point 0. What a channel does not fill of it is precision
lost. Where convolutions and sums alone write and read a tensor, a channel may be multiplied by any factor, and shifted,
if those that read it take factor and shift back: the function of the network stays what it was (Nagel et al.,
"Data-free quantization", ICCV 2019, for two convolutions with a ReLU between them; ours is for those without one, over
the whole chain of sums of a residual network, and with a shift that centres the channel).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from edge.progress import progress
from quantize.families import Family, find_families
from quantize.operations import CONVOLUTIONS, SUMS
from quantize.parameters import bias, bias_node, weight

# A channel that was as good as constant on the calibration images need not stay so.
LARGEST_FACTOR = 16.0


@torch.no_grad()
def equalise(graph: fx.GraphModule, images: Iterable[Tensor]) -> None:
    """Equalise a captured graph, in place. `images`, float32 [1, C, H, W] each, show the channels' ranges."""
    families = [family for family in find_families(graph) if family.is_linear]
    seen = _Extremes(graph, {node for family in families for node in family.nodes})
    for image in progress(images, "equalising"):
        seen.run(image)
    for family in families:
        _equalise(graph, family, seen)


class _Extremes(fx.Interpreter):
    """Least and largest value of each channel of some tensors, over all images that were run."""

    def __init__(self, graph: fx.GraphModule, watched: set[fx.Node]) -> None:
        super().__init__(graph)
        self.watched = watched
        self.least: dict[fx.Node, Tensor] = {}
        self.largest: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n in self.watched and isinstance(value, Tensor):
            least, largest = value.amin((0, 2, 3)), value.amax((0, 2, 3))
            self.least[n] = torch.minimum(self.least.get(n, least), least)
            self.largest[n] = torch.maximum(self.largest.get(n, largest), largest)
        return value


def _equalise(graph: fx.GraphModule, family: Family, seen: _Extremes) -> None:
    shifts: dict[fx.Node, Tensor] = {}
    factors = []
    for node in family.nodes:
        least, largest = seen.least[node], seen.largest[node]
        if node.target in SUMS:
            one, other = node.all_input_nodes
            shifts[node] = shifts[one] + shifts[other]
        elif node.target not in CONVOLUTIONS:
            shifts[node] = shifts[node.all_input_nodes[0]]
        elif family.can_shift and bias_node(node) is not None:
            shifts[node] = (least + largest) / 2
        else:
            shifts[node] = torch.zeros_like(least)
        reach = torch.maximum(largest - shifts[node], shifts[node] - least)
        factors.append((reach.max() / reach).nan_to_num(torch.inf))  # a constant sets no limit
    # No tensor's range grows, so no channel loses.
    factor = torch.stack(factors).amin(0)
    factor = factor.where(factor.isfinite(), 1.0).clamp(1.0, LARGEST_FACTOR)
    for node in family.convolutions:
        weight(graph, node).mul_(factor.view(-1, 1, 1, 1))
        offset = bias(graph, node)
        if offset is not None:
            offset.sub_(shifts[node]).mul_(factor)
    for reader in family.readers:
        kernel, offset = weight(graph, reader), bias(graph, reader)
        if offset is not None:
            offset.add_((kernel.sum((2, 3)) * shifts[reader.all_input_nodes[0]]).sum(1))
        kernel.div_(factor.view(1, -1, 1, 1))
