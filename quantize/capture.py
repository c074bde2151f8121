"""A network as the graph that torch.export makes of it, and the way back from a graph to the lines of its source."""

from __future__ import annotations

import importlib
import os
import re
import traceback
from pathlib import Path

import torch
from torch import fx, nn

from quantize.errors import QuantizeError
from quantize.quiet import quiet

_aten = torch.ops.aten
# In eval mode a dropout is its input.
_DROPOUTS = {_aten.dropout.default, _aten.feature_dropout.default, _aten.alpha_dropout.default}
_FRAME = re.compile(r'File "(.+?)", line (\d+)')
_TORCH, _THIS, _IMPORT = (
    str(Path(str(m)).parent) + os.sep for m in (torch.__file__, __file__, importlib.__file__)
)


def capture(model: nn.Module, shape: tuple[int, int, int], batch: int = 1) -> fx.GraphModule:
    """The graph of `model` in eval mode, for float32 [batch, C, H, W] of `shape` (C, H, W), without dropouts.

    Raises:
        QuantizeError: torch.export refuses it, e.g. where values of the image decide what is computed.
    """
    try:
        with quiet(), torch.no_grad():
            graph = torch.export.export(model.eval(), (torch.zeros(batch, *shape),)).module()
    except Exception as error:  # torch's own, of many kinds, and whatever the network's code raises
        raise QuantizeError(
            "torch.export cannot make a graph of the network",
            wanted="a forward pass of fixed sizes, whose operations do not depend on the pixels",
            got=first_line(error) + raised_at(error),
            next_step="take `if`, loops and sizes that depend on a tensor's values out of forward",
        ) from error
    assert isinstance(graph, fx.GraphModule)
    for node in list(graph.graph.nodes):
        if node.target in _DROPOUTS:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def place(node: fx.Node) -> str:
    """Where `node` comes from: ``in PATH.OF.MODULE, FILE:LINE``, the line being the last one outside of torch."""
    stack = node.meta.get("nn_module_stack") or {}
    module = next(reversed([path for path, _ in stack.values()]), "") or "the network"
    line = source_line(node)
    return f"in {module}, {line}" if line else f"in {module}"


def source_line(node: fx.Node) -> str:
    """``FILE:LINE`` of the call that made `node`, or nothing where torch did not keep it."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    return next((f"{file}:{line}" for file, line in reversed(frames) if not file.startswith(_TORCH)), "")


def raised_at(error: BaseException) -> str:
    """`` (FILE:LINE)`` of the user's code that raised `error`, or nothing if none of it did."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith((_TORCH, _THIS, _IMPORT, "<"))]
    return f" ({users[-1].filename}:{users[-1].lineno})" if users else ""


def first_line(error: BaseException) -> str:
    """The error in one line, its type first."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
