"""Folding batch norm into the convolution before it, as every exporter does."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from quantize.capture import capture


def fold_batch_norm(model: nn.Module, shape: tuple[int, int, int] | None = None) -> nn.Module:
    """A copy of `model` in eval mode whose batch norms went into the convolutions before them.

    In a `nn.Sequential` order is what runs. Elsewhere the graph for an input of `shape` (C, H, W) says which
    convolution a batch norm alone reads. What follows no convolution becomes one, depthwise 1x1, and so
    does everything outside of a `Sequential` where no `shape` is given. In eval mode the function is unchanged up
    to float32 rounding.

    Raises:
        QuantizeError: there is no graph, see `quantize.capture`.
    """
    folded = copy.deepcopy(model).eval()
    for conv, norm in list(_in_sequentials(folded)):
        _fold(folded, conv, norm)
    if shape is not None and _norms(folded):
        for conv, norm in list(_in_graph(folded, capture(folded, shape).graph)):
            _fold(folded, conv, norm)
    for norm in _norms(folded):
        _replace(folded, norm, fuse_conv_bn_eval(_identity(norm), norm))
    return folded


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms that have statistics to fold."""
    found = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return [norm for norm in found if norm.running_mean is not None]


def _in_sequentials(model: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            children = list(module)
            for before, child in zip(children, children[1:]):
                if not isinstance(before, nn.Conv2d) or not isinstance(child, nn.BatchNorm2d):
                    continue
                if child.running_mean is not None:
                    yield before, child


def _in_graph(model: nn.Module, graph: fx.Graph) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs that run once, the batch norm being the only reader of the convolution."""
    aten = torch.ops.aten
    for node in graph.nodes:
        if node.target is not aten.batch_norm.default:
            continue
        before, mean = node.args[0], node.args[3]
        if before.target is not aten.conv2d.default or mean is None:
            continue
        weight = before.args[1]
        if weight.op == "get_attr" and all(len(read.users) == 1 for read in (before, weight, mean)):
            conv, norm = (model.get_submodule(str(read.target).rpartition(".")[0]) for read in (weight, mean))
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                yield conv, norm


def _fold(model: nn.Module, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    _replace(model, conv, fuse_conv_bn_eval(conv, norm))
    _replace(model, norm, nn.Identity())


def _identity(norm: nn.BatchNorm2d) -> nn.Conv2d:
    conv = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features, bias=False)
    nn.init.ones_(conv.weight)
    return conv.to(norm.running_mean).eval()


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is a child; a module may have several names."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new)
