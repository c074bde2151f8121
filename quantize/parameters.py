"""Weights and biases of a captured graph, and changes of them that the graph has to be told of.

All graphs here are those of `quantize.capture`, before any observer.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from quantize.operations import CHANNELWISE, CLAMPS, CONVOLUTIONS, SUMS

_DEFAULTS: tuple[Any, ...] = (None, [1, 1], [0, 0], [1, 1], 1)


def weight(graph: fx.GraphModule, convolution: fx.Node) -> Tensor:
    """[outputs, inputs / groups, height, width]."""
    return _value(graph, convolution.all_input_nodes[1])


def bias(graph: fx.GraphModule, convolution: fx.Node) -> Tensor | None:
    """[outputs]; None where the convolution has none."""
    node = bias_node(convolution)
    return None if node is None else _value(graph, node)


def bias_node(convolution: fx.Node) -> fx.Node | None:
    """Where the bias comes from; None where the convolution has none."""
    found = convolution.args[2] if len(convolution.args) > 2 else None
    return found if isinstance(found, fx.Node) else None


def padding(convolution: fx.Node) -> tuple[int, ...]:
    """Of both axes."""
    return tuple((*convolution.args[2:], *_DEFAULTS[len(convolution.args) - 2 :])[2])


def groups(convolution: fx.Node) -> int:
    """1: every output reads every input."""
    return int((*convolution.args[2:], *_DEFAULTS[len(convolution.args) - 2 :])[4])


def channels(tensor: fx.Node) -> int:
    """Of a map."""
    return int(tensor.meta["val"].shape[1])


def is_depthwise(node: fx.Node) -> bool:
    """Whether each output of a convolution reads one input of its own."""
    source = node.args[0]
    return (
        node.target in CONVOLUTIONS
        and isinstance(source, fx.Node)
        and 1 < groups(node) == channels(source) == channels(node)
    )


def shared(graph: fx.GraphModule) -> set[fx.Node]:
    """Convolutions whose weights or biases something else reads too, and so cannot be changed for them alone."""
    reads: dict[int, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            reads.setdefault(id(_value(graph, node)), []).extend(node.users)
    return {reader for readers in reads.values() if len(readers) > 1 for reader in readers}


def macs(graph: fx.GraphModule, convolution: fx.Node) -> int:
    """Multiply-accumulates of one tile."""
    return prod(convolution.meta["val"].shape[2:]) * weight(graph, convolution).numel()


def set_parameter(graph: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Give a weight or a bias another value, of any shape; `refresh` when all are in their place."""
    path, _, name = str(node.target).rpartition(".")
    owner = graph.get_submodule(path)
    if isinstance(getattr(owner, name), nn.Parameter):
        value = nn.Parameter(value, requires_grad=False)
    setattr(owner, name, value)
    node.meta["val"] = node.meta["val"].new_empty(value.shape)


def refresh(graph: fx.GraphModule) -> None:
    """Tell all maps of the graph how many channels they have by now."""
    for node in graph.graph.nodes:
        if node.target in CONVOLUTIONS:
            count = len(weight(graph, node))
            if 1 < groups(node) == channels(node):  # no others change, see `quantize.families`
                node.args = (*node.args[:6], count)
        elif node.target in CHANNELWISE | CLAMPS | SUMS and node.meta["val"].ndim == 4:
            maps = [read for read in node.all_input_nodes if read.meta["val"].ndim == 4]
            count = max((channels(read) for read in maps), default=channels(node))
        else:
            continue
        before = node.meta["val"]
        if before.shape[1] != count:
            node.meta["val"] = before.new_empty((before.shape[0], count, *before.shape[2:]))
    graph.recompile()


def _value(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    path, _, name = str(node.target).rpartition(".")
    found = getattr(graph.get_submodule(path), name)
    assert isinstance(found, torch.Tensor)
    return found
