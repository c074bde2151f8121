"""What the rounding of each channel of each tensor does to the network's answers, to first order.

A tensor x that is rounded to x + e moves an output y by the sum over positions of dy/dx * e. One forward and one
backward pass of an image give that for all tensors at once, with the errors e that the grid really makes. Where a
channel is nearly constant, all of its errors have one sign and add up: that is what their variance, and a
signal-to-noise ratio, do not show. For the mask, which has as many outputs as cells, dy/dx is taken of sums of the
cells with random signs: squared, they are the sum over the cells on average (Hutchinson, 1990).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from quantize.operations import COMPUTING, OUT_OF_PLACE, is_one_sided, written
from quantize.ranges import LEVELS, RangeObserver
from quantize.recipe import GridRecipe

PROBES = 4


def rounding_noise(
    graph: fx.GraphModule, images: Sequence[Tensor], steps: Mapping[fx.Node, tuple[float, int]]
) -> dict[fx.Node, Tensor]:
    """By tensor, the damage of each of its channels, [C]: the mean of its shares of the mean square changes of defect
    and mask logits that all channels make, each alone; all together sum up to 1.

    Args:
        graph: captured, in full precision.
        images: float32 [1, C, H, W] each.
        steps: of the tensors to look at, see `find_steps`.
    """
    generator = torch.Generator().manual_seed(0)
    squares: dict[fx.Node, Tensor] = {}
    for image in images:
        with torch.enable_grad():
            run = _Run(graph, steps)
            defect, mask = run.run(image)
            tensors = [tensor for tensor in run.seen if run.seen[tensor].requires_grad]
            signs = [torch.randint(0, 2, mask.shape, generator=generator) * 2.0 - 1 for _ in range(PROBES)]
            probes = [(0, defect.sum())] + [(1, (sign * mask).sum()) for sign in signs]
            for output, probe in probes:
                slopes = torch.autograd.grad(
                    probe, [run.seen[tensor] for tensor in tensors], retain_graph=True, allow_unused=True
                )
                for tensor, slope in zip(tensors, slopes):
                    if slope is None:
                        continue
                    moved = (slope * run.errors[tensor]).sum((0, 2, 3)).square()
                    found = squares.setdefault(tensor, torch.zeros(2, len(moved)))
                    found[output] += moved.detach()
    totals = sum(found.sum(1) for found in squares.values())
    assert isinstance(totals, Tensor)
    return {tensor: (found / totals.clamp_min(1e-30)[:, None]).mean(0) for tensor, found in squares.items()}


@torch.no_grad()
def find_steps(
    graph: fx.GraphModule, images: Sequence[Tensor], recipe: GridRecipe
) -> dict[fx.Node, tuple[float, int]]:
    """Scale and zero point of every map that some layer writes, on the grid of `recipe`."""
    maps = [written(node) for node in graph.graph.nodes if node.target in COMPUTING]
    schemes = {
        tensor: torch.per_tensor_affine
        if recipe.one_sided and is_one_sided(tensor)
        else torch.per_tensor_symmetric
        for tensor in maps
        if tensor.meta["val"].ndim == 4
    }
    observers = {tensor: RangeObserver(recipe.ranges, qscheme=scheme) for tensor, scheme in schemes.items()}
    for image in images:
        run = _Run(graph, dict.fromkeys(observers))
        run.run(image)
        for tensor, value in run.seen.items():
            observers[tensor](value)
    found = {}
    for tensor, observer in observers.items():
        scale, zero_point = observer.calculate_qparams()
        found[tensor] = float(scale), int(zero_point)
    return found


class _Run(fx.Interpreter):
    """One forward pass: the tensors that are looked at, and the errors that their steps would make of them."""

    def __init__(self, graph: fx.GraphModule, steps: Mapping[fx.Node, tuple[float, int] | None]) -> None:
        super().__init__(graph)
        self.steps = steps
        self.seen: dict[fx.Node, Tensor] = {}
        self.errors: dict[fx.Node, Tensor] = {}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(OUT_OF_PLACE.get(target, target), args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n not in self.steps:
            return value
        if torch.is_grad_enabled() and not value.requires_grad:
            value = value.detach().requires_grad_(True)
        self.seen[n] = value
        if (step := self.steps[n]) is not None:
            exact = value.detach()
            self.errors[n] = torch.fake_quantize_per_tensor_affine(exact, *step, -LEVELS - 1, LEVELS) - exact
        return value
