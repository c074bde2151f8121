"""Which operations a network may hold, by what the integer grid makes of them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from math import inf
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
CONVOLUTIONS: set[Any] = {_aten.conv2d.default, _aten.convolution.default}
CLAMPS: set[Any] = {
    _aten.hardtanh.default,
    _aten.hardtanh_.default,
    _aten.relu6.default,
    _aten.relu.default,
    _aten.relu_.default,
}
SUMS: set[Any] = {_aten.add.Tensor, _aten.add_.Tensor, operator.add}
PRODUCTS: set[Any] = {_aten.mul.Tensor}
# Output and input have the same integers, or a selection of them.
SAME_SCALE: set[Any] = {
    _aten.max_pool2d.default,
    _aten.upsample_nearest2d.vec,
    _aten.upsample_nearest2d.default,
    _aten.view.default,
    _aten.reshape.default,
    _aten.flatten.using_ints,
}
OWN_SCALE: set[Any] = {_aten.mean.dim}
# What hands on every channel of a map by itself, multiplied and shifted as it came.
CHANNELWISE: set[Any] = {_aten.max_pool2d.default, _aten.upsample_nearest2d.vec, *OWN_SCALE}
NO_TENSOR: set[Any] = {_aten.sym_size.int, operator.getitem}
# What computes new numbers, and so begins a layer; a clamp behind it belongs to it.
COMPUTING: set[Any] = CONVOLUTIONS | SUMS | PRODUCTS | OWN_SCALE
# What would overwrite an answer that is still looked at, and what computes the same without.
OUT_OF_PLACE: dict[Any, Any] = {
    _aten.add_.Tensor: _aten.add.Tensor,
    _aten.hardtanh_.default: _aten.hardtanh.default,
    _aten.relu_.default: _aten.relu.default,
}


def is_clamped(node: fx.Node) -> bool:
    """Whether the only reader of a convolution or a sum is an activation, so that the two run as one."""
    readers = list(node.users)
    return node.target in CONVOLUTIONS | SUMS and len(readers) == 1 and readers[0].target in CLAMPS


def written(node: fx.Node) -> fx.Node:
    """What the layer that begins at `node` writes: the clamp behind it, or `node` itself."""
    return next(iter(node.users)) if is_clamped(node) else node


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The computing operations that read what `node` writes, also through observers and through operations that only
    select from it; each once for every way that leads to it."""
    for reader in node.users:
        if reader.target in COMPUTING:
            yield reader
        elif reader.op == "call_module" or reader.target in SAME_SCALE:
            yield from readers(reader)


def source(node: fx.Node) -> fx.Node:
    """The tensor that `node`, an operation that only selects, selects from."""
    while node.op == "call_module" or node.target in SAME_SCALE:
        node = node.all_input_nodes[0]
    return node


def is_one_sided(node: fx.Node) -> bool:
    """Whether a tensor is never negative, written by a convolution and its clamp, and read by convolutions alone.

    Its least value then has a place of its own on the grid (zero point -128), and the steps are half as wide.
    """
    if node.target not in CLAMPS or bounds(node)[0] != 0 or not is_clamped(node.all_input_nodes[0]):
        return False
    return node.all_input_nodes[0].target in CONVOLUTIONS and all(
        reader.target in CONVOLUTIONS for reader in _readers_of_any_kind(node)
    )


def bounds(clamp: fx.Node) -> tuple[float, float]:
    """Least and largest value that a clamp lets through."""
    name = str(clamp.target)
    if "hardtanh" in name:
        low, high, *_ = (*clamp.args[1:], *(-1.0, 1.0)[len(clamp.args) - 1 :])
        return float(low), float(high)  # type: ignore[arg-type]
    return 0.0, 6.0 if "relu6" in name else inf


def _readers_of_any_kind(node: fx.Node) -> Iterator[fx.Node]:
    for reader in node.users:
        if reader.op == "call_module" or reader.target in SAME_SCALE:
            yield from _readers_of_any_kind(reader)
        else:
            yield reader
