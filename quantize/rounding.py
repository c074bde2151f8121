"""Rounding of weights that answers for what it does to a convolution's output, not to its weights.

Nearest rounding is best where inputs are independent. In a trained network they are not: pixels of a neighbourhood are
nearly equal, and channels rise and fall together. A depthwise kernel that takes a difference, with weights of 34 and
-34, loses more by half a step in their sum than all other layers together, and its signal-to-noise ratio (54 dB) does
not show it (docs/quantization.md).

The graph is walked once, in order, with the answers of the calibration images in full precision and on the grid side
by side. Each convolution first learns, by ridge regression, to give the full-precision answer from the inputs that
it has on the grid, which takes back what the layers before it shifted; then its weights are rounded one input after
the other, and what is lost is made good by those that are still to be rounded, by the second moments of the inputs
(Hassibi and Stork, "Optimal Brain Surgeon", 1993; Frantar et al., "GPTQ", ICLR 2023). The bias is never rounded here
and takes up what is left on average (Nagel et al., "Data-free quantization", ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional
from torchao.quantization.pt2e.observer import ObserverBase, PerChannelMinMaxObserver

from edge.progress import progress
from quantize.ranges import LEVELS
from quantize.recipe import GridRecipe
from quantize.requantization import convolution_scales, fix_weights, weight_scales

# A dead channel must not get a scale so small that its int32 bias overflows.
SMALLEST_SCALE = 2.0**-20
# Shares of the inputs' mean square that keep the regression, and the rounding, near the weights as trained.
RIDGE, DAMPING = 1e-3, 1e-2
# The regression needs this many observations for each weight of a channel: with fewer it learns the images by heart.
OBSERVATIONS_PER_WEIGHT = 16
# Positions that are looked at in one image, and what all images' answers may take of memory.
POSITIONS = 512
MEMORY_BYTES = 3 * 2**30


@dataclass(frozen=True)
class Moments:
    """Second moments of a convolution's inputs over images and positions, a constant 1 as the last input.

    Attributes:
        grid: E[q q^T] of the inputs q on the grid, float64 [groups, K + 1, K + 1].
        both: E[x q^T] with the inputs x in full precision, the same shape.
        count: observations.
    """

    grid: Tensor
    both: Tensor
    count: int


def round_weights(
    prepared: fx.GraphModule, convolutions: set[Any], images: Sequence[Tensor], recipe: GridRecipe
) -> dict[str, Moments]:
    """Put the weights of every convolution of a calibrated graph on the grid, in place.

    Args:
        prepared: from `prepare_pt2e`, with the ranges of all tensors observed.
        convolutions: the graph's targets that are one.
        images: float32 [1, C, H, W] each; as many are used as `MEMORY_BYTES` has room for.
        recipe: of the grid that `prepared` is on.

    Returns:
        by node, the moments of inputs that are in full precision on both sides: what `solve` takes to round one
        convolution as if no other were on the grid.
    """
    walk = _Walk(prepared, convolutions, images, recipe)
    for node in progress(list(prepared.graph.nodes), "rounding weights"):
        walk.visit(node)
    return walk.undisturbed


def solve(
    weight: Tensor,
    bias: Tensor,
    moments: Moments,
    ends: tuple[float, float] | None = None,
    levels: int = LEVELS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights on the grid, the bias that goes with them, and their scales.

    Args:
        weight: [groups, outputs, K].
        bias: [groups, outputs].
        ends: scales of what the convolution reads and writes, for weights whose sums are requantized without ties
            (`quantize.requantization`).
        levels: the largest weight in steps.
    Returns:
        weights as multiples of their scale, biases, scales [groups, outputs].
    """
    inputs = weight.shape[2]
    whole = adapt(weight, bias, moments)
    scale = (whole[:, :, :inputs].abs().amax(2) / levels).clamp_min(SMALLEST_SCALE)
    if ends is not None:
        scale = weight_scales(scale, *ends)
    damped = moments.grid + DAMPING * _penalty(moments)
    rounded = _round_in_turn(whole, damped, scale, levels)
    return rounded[:, :, :inputs].float(), rounded[:, :, inputs].float(), scale.float()


def adapt(weight: Tensor, bias: Tensor, moments: Moments) -> Tensor:
    """Weights, and the bias as the last of them, that give the full-precision answer from inputs on the grid.

    Args:
        weight: [groups, outputs, K].
        bias: [groups, outputs].
    Returns:
        float64 [groups, outputs, K + 1], nothing rounded.
    """
    whole = torch.cat([weight, bias[:, :, None]], dim=2).double()
    if moments.count >= OBSERVATIONS_PER_WEIGHT * weight.shape[2]:
        ridge = RIDGE * _penalty(moments)
        wanted = whole @ moments.both + whole @ ridge
        return torch.linalg.solve(moments.grid + ridge, wanted.transpose(1, 2)).transpose(1, 2)
    # Of the answer, the mean alone.
    whole[:, :, -1:] += whole @ (moments.both[:, :, -1:] - moments.grid[:, :, -1:])
    return whole


def _penalty(moments: Moments) -> Tensor:
    """The inputs' mean square, on the diagonal, for each group; the bias is next to free."""
    inputs = moments.grid.shape[1] - 1
    free_bias = torch.ones(inputs + 1, dtype=torch.float64)
    free_bias[-1] = 1e-6
    mean_square = moments.grid.diagonal(dim1=1, dim2=2)[:, :inputs].mean(1).clamp_min(1e-12)[:, None, None]
    return mean_square * free_bias.diag()


def _round_in_turn(whole: Tensor, moments: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Round all inputs but the last, those of most power first; the others make good what each of them loses."""
    groups, _, size = whole.shape
    power = moments.diagonal(dim1=1, dim2=2)[:, :-1]
    last = torch.full((groups, 1), size - 1)
    order = torch.cat([power.argsort(dim=1, descending=True), last], dim=1)
    left = whole.gather(2, order[:, None].expand_as(whole))
    moments = moments.gather(1, order[:, :, None].expand_as(moments))
    moments = moments.gather(2, order[:, None].expand_as(moments))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True)
    done = torch.zeros_like(left)
    for place in range(size - 1):
        steps = (left[:, :, place] / scale).round().clamp(-levels, levels)
        done[:, :, place] = steps * scale
        lost = (left[:, :, place] - done[:, :, place]) / factor[:, place, place, None]
        left[:, :, place:] -= lost[:, :, None] * factor[:, None, place, place:]
    done[:, :, -1] = left[:, :, -1]
    return done.gather(2, order.argsort(1)[:, None].expand_as(done))


class _Walk:
    """A graph on its way: what each tensor is in full precision, and on the grid, for every image."""

    def __init__(
        self, prepared: fx.GraphModule, convolutions: set[Any], images: Sequence[Tensor], recipe: GridRecipe
    ) -> None:
        self.graph, self.convolutions, self.recipe = prepared, convolutions, recipe
        self.images = images[:: -(-len(images) // _room(prepared))]
        self.parameters = dict(prepared.named_parameters()) | dict(prepared.named_buffers())
        self.full: dict[fx.Node, Any] = {}
        self.grid: dict[fx.Node, Any] = {}
        self.readers = {node: len(node.users) for node in prepared.graph.nodes}
        self.undisturbed: dict[str, Moments] = {}
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.full[node] = self.grid[node] = list(self.images)
        elif node.op == "get_attr":
            tensor = self.parameters[str(node.target)]
            self.full[node], self.grid[node] = tensor.detach().clone(), tensor
        elif node.op == "call_module":
            self._observed(node)
        elif node.op == "call_function":
            if node.target in self.convolutions:
                self._round(node)
            self.full[node] = self._run(node, self.full)
            self.grid[node] = self._run(node, self.grid)
        for source in node.all_input_nodes:
            self.readers[source] -= 1
            if not self.readers[source] and source.op != "get_attr":
                del self.full[source], self.grid[source]

    def _observed(self, node: fx.Node) -> None:
        """What lies behind an observer is on the grid; weights go there by `_round`."""
        observer = self.graph.get_submodule(str(node.target))
        if not isinstance(observer, ObserverBase):
            return  # torch.export's check of the input's shape
        (source,) = node.all_input_nodes
        self.full[node], self.grid[node] = self.full[source], self.grid[source]
        if isinstance(self.grid[source], list):
            scale, zero_point = (value.item() for value in observer.calculate_qparams())
            self.grid[node] = [
                torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -LEVELS - 1, LEVELS)
                for x in self.grid[source]
            ]

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        target: Any = node.target
        answers = []
        for index in range(len(self.images)):

            def of_image(source: fx.Node, index: int = index) -> Any:
                found = values[source]
                return found[index] if isinstance(found, list) else found

            answers.append(
                target(*fx.node.map_arg(node.args, of_image), **fx.node.map_arg(node.kwargs, of_image))
            )
        return answers

    def _round(self, node: fx.Node) -> None:
        source, observed = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(observed, fx.Node)
        # A convolution that stays in float reads its weights without an observer.
        parameter = observed.all_input_nodes[0] if observed.op == "call_module" else observed
        weight = self.grid[parameter]
        bias_node = node.args[2] if len(node.args) > 2 else None
        groups = int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[call-overload]
        shape = (groups, len(weight) // groups, -1)
        bias = self.grid[bias_node] if isinstance(bias_node, fx.Node) else weight.new_zeros(len(weight))
        moments = self._moments(node, source, tuple(weight.shape[2:]), groups)
        scale = None
        if parameter is observed:
            whole = adapt(weight.reshape(shape), bias.reshape(shape[:2]), moments).float()
            ours, shifted = whole[:, :, :-1], whole[:, :, -1]
        else:
            ends = convolution_scales(self.graph, node) if self.recipe.tie_free else None
            ours, shifted, scale = solve(
                weight.reshape(shape), bias.reshape(shape[:2]), moments, ends, self.recipe.weight_levels
            )
        weight.copy_(ours.reshape(weight.shape))
        if isinstance(bias_node, fx.Node):
            bias.copy_(shifted.reshape(-1))
        if scale is not None:
            observer = self.graph.get_submodule(str(observed.target))
            assert isinstance(observer, PerChannelMinMaxObserver)
            # The scale stays what the weights were rounded to, also where no weight reached its end.
            fix_weights(observer, scale)

    def _moments(self, node: fx.Node, source: fx.Node, kernel: tuple[int, ...], groups: int) -> Moments:
        defaults: list[Any] = [[1, 1], [0, 0], [1, 1]]
        stride, padding, dilation = [*node.args[3:6], *defaults[len(node.args[3:6]) :]]
        grid: Any = 0.0
        both: Any = 0.0
        undisturbed: Any = 0.0
        count = 0
        for full, on_grid in zip(self.full[source], self.grid[source]):
            pair = [
                functional.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)[0]
                for x in (full, on_grid)
            ]
            places = torch.randperm(pair[0].shape[1], generator=self.generator)[:POSITIONS]
            x, q = (_with_one(columns[:, places], groups) for columns in pair)
            grid = grid + (q @ q.transpose(1, 2)).double()
            both = both + (x @ q.transpose(1, 2)).double()
            undisturbed = undisturbed + (x @ x.transpose(1, 2)).double()
            count += len(places)
        self.undisturbed[node.name] = Moments(undisturbed / count, undisturbed / count, count)
        return Moments(grid / count, both / count, count)


def _with_one(columns: Tensor, groups: int) -> Tensor:
    """[groups * K, n] -> [groups, K + 1, n], the last input a constant 1."""
    grouped = columns.reshape(groups, -1, columns.shape[1])
    return torch.cat([grouped, grouped.new_ones(groups, 1, grouped.shape[2])], dim=1)


def _room(graph: fx.GraphModule) -> int:
    """How many images' answers fit into memory: two of each tensor that is alive at once, in float32."""
    tensors = [node.meta.get("val") for node in graph.graph.nodes if node.op == "call_function"]
    largest = max((value.numel() for value in tensors if isinstance(value, Tensor)), default=1)
    return int(max(1, MEMORY_BYTES // (8 * 4 * largest)))
