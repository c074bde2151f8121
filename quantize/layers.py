"""The layers of a captured graph, as the files have them: what computes new numbers, with the clamp fused behind it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import fx

from quantize.operations import COMPUTING, CONVOLUTIONS, PRODUCTS, SUMS, readers, written


@dataclass(frozen=True)
class Layer:
    """One convolution, sum, product or mean.

    Attributes:
        name: path of the module that computes it; with the graph node where a module computes several.
        node: name of the graph node; the same for every capture of one network.
        kind: `convolution`, `sum`, `product` or `mean`.
        readers: nodes of the layers that read what it writes, in the order of the graph; empty for an output.
        macs: multiply-accumulates of one tile; 0 for all but convolutions.
    """

    name: str
    node: str
    kind: str
    readers: tuple[str, ...]
    macs: int


def find_layers(graph: fx.GraphModule) -> list[Layer]:
    """The layers of a graph of `torch.export`, with observers or without, in the order in which they run."""
    begins = [node for node in graph.graph.nodes if node.target in COMPUTING]
    place = {node: index for index, node in enumerate(begins)}
    layers: list[Layer] = []
    for node in begins:
        path = module_path(node)
        # A module other than a convolution may compute several sums; one convolution may be called twice.
        own = bool(path) and node.target in CONVOLUTIONS and all(layer.name != path for layer in layers)
        found = sorted(set(readers(written(node))), key=place.__getitem__)
        layers.append(
            Layer(
                name=path if own else f"{path or 'network'}/{node.name}",
                node=node.name,
                kind=_kind(node),
                readers=tuple(reader.name for reader in found),
                macs=_macs(graph, node),
            )
        )
    return layers


def module_path(node: fx.Node) -> str:
    """The module that made `node`, as `named_modules` calls it; empty for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L__self___")


def _kind(node: fx.Node) -> str:
    for kind, targets in (("convolution", CONVOLUTIONS), ("sum", SUMS), ("product", PRODUCTS)):
        if node.target in targets:
            return kind
    return "mean"


def _macs(graph: fx.GraphModule, node: fx.Node) -> int:
    """Outputs, times the inputs that each of them adds up."""
    if node.target not in CONVOLUTIONS:
        return 0
    weight = node.all_input_nodes[1]
    while weight.op == "call_module":
        (weight,) = weight.all_input_nodes
    kernel = (dict(graph.named_parameters()) | dict(graph.named_buffers()))[str(weight.target)].shape
    return prod(int(size) for size in node.meta["val"].shape) * prod(int(size) for size in kernel[1:])
