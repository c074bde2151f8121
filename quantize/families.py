"""Families: tensors of a captured graph whose channels correspond one to one.

Sums, depthwise convolutions, clamps, pools and nearest upsampling keep every channel to itself, so a channel of what
they read is a channel of what they write. Convolutions that mix channels write a family's rows and read its columns.
Whatever is done to a channel of a family in all of its rows and columns at once can leave the network's function what
it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from quantize.operations import CHANNELWISE, CLAMPS, CONVOLUTIONS, SUMS
from quantize.parameters import bias_node, channels, groups, is_depthwise, macs, padding, shared, weight


@dataclass(frozen=True)
class Family:
    """Tensors [N, C, H, W] with channels in common.

    Attributes:
        nodes: what writes them, in the order of the graph: convolutions, sums, clamps, pools, upsamplings, means.
        readers: the convolutions that mix their channels.
    """

    nodes: tuple[fx.Node, ...]
    readers: tuple[fx.Node, ...]

    @property
    def convolutions(self) -> tuple[fx.Node, ...]:
        """Those that write; with more channels each of them gets more rows."""
        return tuple(node for node in self.nodes if node.target in CONVOLUTIONS)

    @property
    def channels(self) -> int:
        return channels(self.nodes[0])

    @property
    def is_linear(self) -> bool:
        """Whether a channel may be multiplied by any factor: no clamp, and all convolutions read other families."""
        return not any(node.target in CLAMPS or is_depthwise(node) for node in self.nodes)

    @property
    def can_shift(self) -> bool:
        """Whether readers can take back a shift: a bias does, but zeros beyond the edge of a map are not shifted."""
        return all(not any(padding(reader)) and bias_node(reader) is not None for reader in self.readers)

    def channel_macs(self, graph: fx.GraphModule) -> int:
        """What one more channel costs, multiply-accumulates of one tile."""
        rows = sum(macs(graph, node) // self.channels for node in self.convolutions)
        return rows + sum(macs(graph, node) // weight(graph, node).shape[1] for node in self.readers)


def find_families(graph: fx.GraphModule) -> list[Family]:
    """The families of which every row and column can be changed.

    Not those that are an output of the network or a factor of a product, or of which a convolution shares its weights
    with another.
    """
    parents: dict[fx.Node, fx.Node] = {}

    def root(node: fx.Node) -> fx.Node:
        while parents.setdefault(node, node) is not node:
            node = parents[node]
        return node

    for node in graph.graph.nodes:
        if node.target in CONVOLUTIONS:
            parents[root(node)] = root(node.args[0]) if is_depthwise(node) else root(node)
        elif node.target in SUMS | CHANNELWISE | CLAMPS:
            for read in node.all_input_nodes:
                parents[root(read)] = root(node)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node in parents:
            members.setdefault(root(node), []).append(node)
    fixed = shared(graph)
    return [family for nodes in members.values() if (family := _family(nodes, fixed)) is not None]


def _family(nodes: list[fx.Node], fixed: set[fx.Node]) -> Family | None:
    """None where something is read or written that cannot be changed."""
    inside = set(nodes)
    readers: list[fx.Node] = []
    for node in nodes:
        if node.op != "call_function" or node.meta["val"].ndim != 4 or node in fixed:
            return None
        if node.target in CONVOLUTIONS and groups(node) != 1 and not is_depthwise(node):
            return None  # its rows belong to groups, or its outputs to inputs: one more has no place
        if node.target in SUMS and (len(node.all_input_nodes) != 2 or node.kwargs):
            return None
        if channels(node) != channels(nodes[0]):  # a sum that repeats a map of one channel
            return None
        for reader in node.users:
            if reader.target in CONVOLUTIONS and reader.args[0] is node and groups(reader) == 1:
                readers.append(reader)
            elif reader not in inside:
                return None
    return Family(tuple(nodes), tuple(readers)) if readers and fixed.isdisjoint(readers) else None
