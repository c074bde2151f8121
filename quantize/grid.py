"""The one integer grid: a calibrated PT2E graph that every target lowers as it is.

Every tensor of the network lies on an int8 grid with zero point 0 that OpenVINO, TensorRT and TFLite all execute; but
for those that are never negative and that convolutions alone read, whose zero point is -128, so that their steps are
half as wide. TensorRT refuses zero points other than 0: there such a tensor is shifted by 128 steps, which biases take
back, and holds the same integers (`targets.onnx_writer`). Weights have one scale per output channel, biases stay float
and go where the target wants them. TFLite's rules about equal scales hold: max pool, nearest upsampling and reshapes
keep their input's scale. The input is fixed at scale 1/128, so that int8 = uint8 ^ 0x80.

Before it is calibrated, a network is equalised (`quantize.equalisation`) and, if asked to, widened
(`quantize.widening`). In full precision both leave its function what it was.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edge.progress import progress
from quantize.capture import capture, place, source_line
from quantize.equalisation import equalise
from quantize.errors import CalibrationError, QuantizeError
from quantize.operations import (
    CLAMPS,
    COMPUTING,
    CONVOLUTIONS,
    NO_TENSOR,
    OWN_SCALE,
    PRODUCTS,
    SAME_SCALE,
    SUMS,
    is_clamped,
    is_one_sided,
    readers,
    source,
)
from quantize.quiet import quiet
from quantize.ranges import LEVELS, RangeObserver
from quantize.recipe import ROUNDINGS, GridRecipe
from quantize.replacements import instead_of
from quantize.requantization import settle_activations, settle_biases, settle_weights
from quantize.rounding import SMALLEST_SCALE, Moments, round_weights
from quantize.saturation import saturate_summands
from quantize.widening import Widened, widen

INPUT_SCALE = 1 / 128
_NO_PLACE = " has no place on the integer grid"

SECOND_ORDER, _ = ROUNDINGS
_DEFAULT = GridRecipe()
# Enough for the second moments of 577 inputs, and no more: the walk takes as long as they are many.
ROUNDING_IMAGES = 64

WEIGHTS = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=SMALLEST_SCALE),
)
INPUT = FixedQParamsQuantizationSpec(
    dtype=torch.int8,
    scale=INPUT_SCALE,
    zero_point=0,
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_symmetric,
)


class GridQuantizer(Quantizer):
    """Annotates every operation of a network for the grid; an operation that it does not know is an error.

    Args:
        leave: graph nodes (convolutions, sums, ...) that stay in float. A tensor between two layers stays float where
            the layer that writes it and all that read it do: an int8 layer reads and writes int8.
    """

    def __init__(self, recipe: GridRecipe = _DEFAULT, leave: Collection[str] = ()) -> None:
        super().__init__()
        self.recipe, self.leave = recipe, frozenset(leave)
        self.symmetric, self.one_sided = (
            QuantizationSpec(
                dtype=torch.int8,
                quant_min=-128,
                quant_max=127,
                qscheme=scheme,
                observer_or_fake_quant_ctr=RangeObserver.with_args(method=recipe.ranges),
            )
            for scheme in (torch.per_tensor_symmetric, torch.per_tensor_affine)
        )

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Mark the tensors of `model` that are quantized, and how.

        Raises:
            QuantizeError: naming every operation that has no place, once for each line of the source; or a name in
                `leave` that no layer has.
        """
        unknown = self.leave - {node.name for node in model.graph.nodes if node.target in COMPUTING}
        if unknown:
            raise QuantizeError(
                "a layer that is to stay in float is not in the graph",
                wanted="names of convolutions, sums, products or means, as `quantize.layers.find_layers` gives them",
                got=", ".join(sorted(unknown)),
            )
        misfits: dict[Any, QuantizeError] = {}
        for node in model.graph.nodes:
            if node.op == "placeholder":
                self._mark(node, output=INPUT)
            elif node.op == "call_function":
                try:
                    self._annotate(node)
                except QuantizeError as error:
                    misfits.setdefault((node.target, source_line(node) or node), error)
        if len(misfits) == 1:
            raise next(iter(misfits.values()))
        if misfits:
            lines = [
                f"\n    {misfit.what.removesuffix(_NO_PLACE)}\n      {misfit.next_step}"
                for misfit in misfits.values()
            ]
            raise QuantizeError(
                f"{len(misfits)} operations have no place on the integer grid",
                wanted="operations that all three targets run in int8",
                got="".join(lines),
            )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing left to check: `annotate` refuses what it cannot place."""

    def _annotate(self, node: fx.Node) -> None:
        own = None if is_clamped(node) else self.symmetric
        if node.name in self.leave:
            return
        if node.target in CONVOLUTIONS:
            self._mark(node, {_argument(node, 0): self._edge(node, 0), _argument(node, 1): WEIGHTS}, own)
        elif node.target in SUMS | PRODUCTS:
            self._mark(node, {_argument(node, i): self._edge(node, i) for i in (0, 1)}, own)
        elif node.target in OWN_SCALE:
            self._mark(node, {_argument(node, 0): self._edge(node, 0)}, own)
        elif node.target in CLAMPS:
            if not is_clamped(_argument(node, 0)):
                raise _unknown(
                    node, "an activation directly behind a convolution or a sum, read by nothing else"
                )
            if _argument(node, 0).name not in self.leave:
                self._mark(node, output=self._activation(node))
        elif node.target in SAME_SCALE:
            tensor = _argument(node, 0)
            if not self._stays_float(source(tensor)):
                self._mark(node, {tensor: self._edge(node, 0)}, SharedQuantizationSpec((tensor, node)))
        elif node.target not in NO_TENSOR:
            raise _unknown(node, "an operation that all three targets run in int8")

    def _stays_float(self, tensor: fx.Node) -> bool:
        writer = _argument(tensor, 0) if tensor.target in CLAMPS else tensor
        return writer.name in self.leave and all(reader.name in self.leave for reader in readers(tensor))

    def _edge(self, node: fx.Node, index: int) -> Any:
        tensor = _argument(node, index)
        return INPUT if tensor.op == "placeholder" else self._activation(source(tensor))

    def _activation(self, tensor: fx.Node) -> QuantizationSpec:
        return self.one_sided if self.recipe.one_sided and is_one_sided(tensor) else self.symmetric

    @staticmethod
    def _mark(node: fx.Node, inputs: dict[fx.Node, Any] | None = None, output: Any = None) -> None:
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=inputs or {}, output_qspec=output, _annotated=True
        )


def _argument(node: fx.Node, index: int) -> fx.Node:
    argument = node.args[index]
    if not isinstance(argument, fx.Node):
        raise _unknown(node, f"a tensor as argument {index}")
    return argument


def _unknown(node: fx.Node, wanted: str) -> QuantizeError:
    return QuantizeError(
        f"operation {node.target} {place(node)}{_NO_PLACE}",
        wanted=wanted,
        got=f"{node.format_node()}",
        next_step=f"use instead: {instead_of(node.target)}",
    )


def refuse_misfits(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse a float network that `calibrate` would refuse for its operations. `shape` is (C, H, W).

    Raises:
        QuantizeError: there is no graph of it, or an operation has no place on the grid.
    """
    GridQuantizer().annotate(capture(model, shape))


@dataclass
class CalibratedGrid:
    """A network whose every tensor has its scale.

    Attributes:
        prepared: the graph with its observers, calibrated; biases are rounded to what every target can hold.
        input_shape: (channels, height, width).
        count: images that set the ranges.
        recipe: how it was made; None where the numbers come from a file.
        trained: the graph's parameters before they were rounded, by name.
        undisturbed: moments of the inputs of convolutions in full precision, by node, see `round_weights`; empty
            where weights were not rounded to second order.
        leave: graph nodes that stayed in float, see `GridQuantizer`.
        widened: the channels that were copied, see `quantize.widening`; None where none were to be.
    """

    prepared: fx.GraphModule = field(repr=False)
    input_shape: tuple[int, int, int]
    count: int
    recipe: GridRecipe | None
    trained: Mapping[str, Tensor] = field(repr=False)
    undisturbed: Mapping[str, Moments] = field(default_factory=dict, repr=False)
    leave: tuple[str, ...] = ()
    widened: Widened | None = None

    def __post_init__(self) -> None:
        settle_biases(self.prepared)

    @cached_property
    def folded(self) -> fx.GraphModule:
        """Quantized graph with int8 weights: what every target lowers, and what torch can run as a check."""
        with quiet():
            return convert_pt2e(copy.deepcopy(self.prepared), fold_quantize=True)

    @property
    def weight_levels(self) -> int:
        """The largest weight in steps."""
        return self.recipe.weight_levels if self.recipe else LEVELS

    def output_scales(self) -> tuple[float, ...]:
        """The step of each output in its own unit (logits), in the order of the network's outputs."""
        (output,) = [node for node in self.folded.graph.nodes if node.op == "output"]
        return tuple(float(node.args[1]) for node in fx.node.map_arg(output.args[0], lambda n: n) or ())


def prepare(
    graph: fx.GraphModule, recipe: GridRecipe = _DEFAULT, leave: Collection[str] = ()
) -> fx.GraphModule:
    """A captured graph with observers that saw nothing yet. The nodes `leave` stay in float, see `GridQuantizer`."""
    with torch.no_grad():
        return prepare_pt2e(graph, GridQuantizer(recipe, leave))  # type: ignore[no-any-return]


def capture_copy(model: nn.Module, input_shape: tuple[int, int, int], batch: int = 1) -> fx.GraphModule:
    """The graph of a float network, for `batch` images at a time, with parameters of its own.

    A graph shares them with the network that it was captured from, and all that is done to it on its way writes to
    them.
    """
    return capture(copy.deepcopy(model), input_shape, batch)


def parameters(prepared: fx.GraphModule) -> dict[str, Tensor]:
    """Copies of the graph's weights, biases and constants, by name, without what observers remember."""
    return {
        name: tensor.detach().clone()
        for name, tensor in (*prepared.named_parameters(), *prepared.named_buffers())
        if not name.startswith("activation_post_process")
    }


def calibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    input_shape: tuple[int, int, int],
    recipe: GridRecipe = _DEFAULT,
    leave: Collection[str] = (),
) -> CalibratedGrid:
    """Put a float network on the grid.

    Args:
        model: eval mode, batch norm folded (`quantize.models.batch_norm.fold_batch_norm`).
        batches: float32 [N, C, H, W] in (p - 128) / 128; they set the ranges.
        input_shape: (C, H, W) that the network will be fixed to.
        leave: graph nodes that stay in float, see `GridQuantizer`.

    Raises:
        CalibrationError: no images, or of another shape.
        QuantizeError: an operation has no place on the grid, or weights or activations are not finite.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise QuantizeError(
                f"{name} holds values that are not finite",
                wanted="finite weights",
                got="NaN or infinity",
                next_step="the training diverged: train again with a lower learning rate",
            )
    if recipe.rounding not in ROUNDINGS:
        raise QuantizeError(f"unknown rounding {recipe.rounding!r}", wanted=" or ".join(ROUNDINGS))
    images = _images(batches, tuple(input_shape))
    graph = capture_copy(model, input_shape)
    GridQuantizer(recipe, leave).annotate(graph)  # refuses what has no place before anything is changed
    if recipe.equalised:
        equalise(graph, images)
    widened = widen(graph, images, recipe) if recipe.widening else None
    prepared = prepare(graph, recipe, leave)
    with torch.no_grad():
        for image in progress(images, "finding ranges"):
            prepared(image)
    saturate_summands(prepared)
    if recipe.tie_free:
        settle_activations(prepared)
        settle_weights(prepared, recipe.weight_levels)
    trained = parameters(prepared)
    undisturbed: dict[str, Moments] = {}
    if recipe.rounding == SECOND_ORDER:
        # Good parts come first, defects last: what is looked at has to be of both.
        looked_at = images[:: -(-len(images) // ROUNDING_IMAGES)]
        undisturbed = round_weights(prepared, CONVOLUTIONS, looked_at, recipe)
    return CalibratedGrid(
        prepared,
        tuple(input_shape),
        len(images),
        recipe,
        trained,
        undisturbed,
        tuple(sorted(leave)),
        widened,
    )


def _images(batches: Iterable[Tensor], shape: tuple[int, int, int]) -> list[Tensor]:
    """The calibration images one by one, [1, C, H, W] each."""
    images: list[Tensor] = []
    for batch in batches:
        if tuple(batch.shape[1:]) != shape:
            raise CalibrationError(
                "a calibration image has the wrong shape", wanted=shape, got=tuple(batch.shape[1:])
            )
        images += batch.split(1)
    if not images:
        raise CalibrationError("there are no calibration images", wanted="at least one")
    return images
