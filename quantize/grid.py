"""The one integer grid: a calibrated PT2E graph that every target lowers as it is.

Every tensor of the network lies on a symmetric int8 grid with zero point 0, the intersection of what
OpenVINO, TensorRT (which refuses other zero points) and TFLite execute. Weights have one scale per output
channel, biases stay float and go where the target wants them. TFLite's rules about equal scales hold:
max pool, nearest upsampling and reshapes keep their input's scale. The input is fixed at scale 1/128, so that
int8 = uint8 ^ 0x80.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
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

from quantize.capture import capture, place, source_line
from quantize.errors import CalibrationError, QuantizeError
from quantize.quiet import quiet
from quantize.ranges import DEFAULT_METHOD, RangeObserver
from quantize.replacements import instead_of
from quantize.rounding import SMALLEST_SCALE, round_weights

INPUT_SCALE = 1 / 128

_aten = torch.ops.aten
_CONVOLUTIONS = {_aten.conv2d.default, _aten.convolution.default}
_CLAMPS = {
    _aten.hardtanh.default,
    _aten.hardtanh_.default,
    _aten.relu6.default,
    _aten.relu.default,
    _aten.relu_.default,
}
_SUMS = {_aten.add.Tensor, _aten.add_.Tensor, operator.add}
_PRODUCTS = {_aten.mul.Tensor}
# Output and input have the same integers, or a selection of them.
_SAME_SCALE = {
    _aten.max_pool2d.default,
    _aten.upsample_nearest2d.vec,
    _aten.upsample_nearest2d.default,
    _aten.view.default,
    _aten.reshape.default,
    _aten.flatten.using_ints,
}
_OWN_SCALE = {_aten.mean.dim}
_NO_PLACE = " has no place on the integer grid"
_NO_TENSOR = {_aten.sym_size.int, operator.getitem}

SECOND_ORDER = "second-order"
ROUNDINGS = (SECOND_ORDER, "nearest")
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
    """Annotates every operation of a network for the grid; an operation that it does not know is an error."""

    def __init__(self, method: str = DEFAULT_METHOD) -> None:
        super().__init__()
        self.activation = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_symmetric,
            observer_or_fake_quant_ctr=RangeObserver.with_args(method=method),
        )

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Mark the tensors of `model` that are quantized, and how.

        Raises:
            QuantizeError: naming every operation that has no place, once for each line of the source.
        """
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
        own = None if _is_clamped(node) else self.activation
        if node.target in _CONVOLUTIONS:
            self._mark(node, {_argument(node, 0): self._edge(node, 0), _argument(node, 1): WEIGHTS}, own)
        elif node.target in _SUMS | _PRODUCTS:
            self._mark(node, {_argument(node, i): self._edge(node, i) for i in (0, 1)}, own)
        elif node.target in _OWN_SCALE:
            self._mark(node, {_argument(node, 0): self._edge(node, 0)}, own)
        elif node.target in _CLAMPS:
            if not _is_clamped(_argument(node, 0)):
                raise _unknown(
                    node, "an activation directly behind a convolution or a sum, read by nothing else"
                )
            self._mark(node, output=self.activation)
        elif node.target in _SAME_SCALE:
            source = _argument(node, 0)
            self._mark(node, {source: self._edge(node, 0)}, SharedQuantizationSpec((source, node)))
        elif node.target not in _NO_TENSOR:
            raise _unknown(node, "an operation that all three targets run in int8")

    def _edge(self, node: fx.Node, index: int) -> Any:
        return INPUT if _argument(node, index).op == "placeholder" else self.activation

    @staticmethod
    def _mark(node: fx.Node, inputs: dict[fx.Node, Any] | None = None, output: Any = None) -> None:
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=inputs or {}, output_qspec=output, _annotated=True
        )


def _is_clamped(node: fx.Node) -> bool:
    """Whether the only reader of a convolution or a sum is an activation, so that the two run as one."""
    readers = list(node.users)
    return node.target in _CONVOLUTIONS | _SUMS and len(readers) == 1 and readers[0].target in _CLAMPS


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
        prepared: the graph with its observers, calibrated.
        input_shape: (channels, height, width).
        count: images that set the ranges.
        method: how ranges were chosen.
        rounding: how weights were rounded.
    """

    prepared: fx.GraphModule = field(repr=False)
    input_shape: tuple[int, int, int]
    count: int
    method: str
    rounding: str

    @cached_property
    def folded(self) -> fx.GraphModule:
        """Quantized graph with int8 weights: what every target lowers, and what torch can run as a check."""
        with quiet():
            return convert_pt2e(copy.deepcopy(self.prepared), fold_quantize=True)

    def output_scales(self) -> tuple[float, ...]:
        """The step of each output in its own unit (logits), in the order of the network's outputs."""
        (output,) = [node for node in self.folded.graph.nodes if node.op == "output"]
        return tuple(float(node.args[1]) for node in fx.node.map_arg(output.args[0], lambda n: n) or ())


def prepare(
    model: nn.Module, input_shape: tuple[int, int, int], method: str = DEFAULT_METHOD, batch: int = 1
) -> fx.GraphModule:
    """The graph of a float network, for `batch` images at a time, with observers that saw nothing yet."""
    # A graph shares its parameters with the network, and rounding and training write to them.
    network = copy.deepcopy(model)
    with torch.no_grad():
        return prepare_pt2e(capture(network, input_shape, batch), GridQuantizer(method))  # type: ignore[no-any-return]


def calibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    input_shape: tuple[int, int, int],
    method: str = DEFAULT_METHOD,
    rounding: str = SECOND_ORDER,
) -> CalibratedGrid:
    """Put a float network on the grid.

    Args:
        model: eval mode, batch norm folded (`quantize.models.batch_norm.fold_batch_norm`).
        batches: float32 [N, C, H, W] in (p - 128) / 128; they set the ranges.
        input_shape: (C, H, W) that the network will be fixed to.
        method: `minmax`, `percentile` or `mse`, see `quantize.ranges`.
        rounding: `second-order` (`quantize.rounding`) or `nearest`.

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
    if rounding not in ROUNDINGS:
        raise QuantizeError(f"unknown rounding {rounding!r}", wanted=" or ".join(ROUNDINGS))
    images: list[Tensor] = []
    with torch.no_grad():
        prepared = prepare(model, input_shape, method)
        for batch in batches:
            if tuple(batch.shape[1:]) != tuple(input_shape):
                raise CalibrationError(
                    "a calibration image has the wrong shape", wanted=input_shape, got=tuple(batch.shape[1:])
                )
            for image in batch.split(1):
                prepared(image)
                images.append(image)
    if not images:
        raise CalibrationError("there are no calibration images", wanted="at least one")
    if rounding == SECOND_ORDER:
        # Good parts come first, defects last: what is looked at has to be of both.
        round_weights(prepared, _CONVOLUTIONS, images[:: -(-len(images) // ROUNDING_IMAGES)])
    return CalibratedGrid(prepared, tuple(input_shape), len(images), method, rounding)
