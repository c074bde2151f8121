"""What the compiler asks of single operations: the known limitations of the vendor's table, and limits of size."""

from __future__ import annotations

from collections.abc import Callable

from targets.edgetpu_lint import limits
from targets.edgetpu_lint.evidence import LARGE_TRANSPOSED, LOG_YOLO9, RESIZED, TABLE, TRANSPOSED, Knowledge
from targets.edgetpu_lint.graph import Operation, Tensor
from targets.edgetpu_lint.judgement import UNIT_STRIDES, UNSPECIFIED, Judgement, Rule, on_cpu, unknown, within


def _no_activation(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    if not operation.options.get("fusedActivationFunction", 0):
        return None
    return on_cpu(UNSPECIFIED, "move the activation function into an operation of its own", TABLE)


def _even_dilation(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    options = operation.options
    if options.get("dilationWFactor", 1) == options.get("dilationHFactor", 1):
        return None
    return on_cpu(UNSPECIFIED, "dilate by the same factor in x and y", TABLE)


def _one_group(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    source, weight = operation.operand(0), operation.operand(1)
    if source is None or weight is None or source.shape[-1:] == weight.shape[-1:]:
        return None
    return unknown("a convolution in groups", "use a full or a depthwise convolution", TABLE)


def _padding_by_concatenation(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    constants = [tensor for tensor in operation.operands if not tensor.computed]
    if not constants:
        return None
    if len(operation.operands) == 2 and all(map(_is_zero, constants)):
        return None
    return on_cpu(UNSPECIFIED, "concatenate computed tensors only, or one with a block of zeros", TABLE)


def _is_zero(tensor: Tensor) -> bool:
    return tensor.data is not None and set(tensor.data) <= {tensor.zero_point & 0xFF}


def _rows(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    output = operation.outputs[0]
    if not output.shape or output.elements == output.shape[-1]:
        return None
    rows = output.elements // max(1, output.shape[-1])
    what = f"{operation.name} over {rows} rows; the table says one, a log has more"
    return unknown(what, "use a 1x1 convolution, or move it to the host", TABLE, LOG_YOLO9)


def _softmax_size(operation: Operation, knowledge: Knowledge) -> Judgement | None:
    remedy = f"at most {limits.SOFTMAX.largest_mapped(knowledge)} elements; pool or stride before it"
    return within(limits.SOFTMAX, operation.outputs[0].elements, remedy, knowledge)


def _resize_size(operation: Operation, knowledge: Knowledge) -> Judgement | None:
    output = operation.outputs[0]
    remedy = "leave the enlargement to the host, or do it on fewer channels and in steps of two"
    found = within(limits.RESIZE, output.elements, remedy, knowledge)
    if found is not None:
        return found
    before, after = _first(operation).shape[1:3], output.shape[1:3]
    # From one pixel everything is a copy, so no precision can be lost, which is the table's reason.
    steep = [f"{b} to {a}" for b, a in zip(before, after) if b > 1 and not b <= 2 * a <= 4 * b]
    if not steep:
        return None
    return unknown(f"a resize by more than two ({', '.join(steep)})", remedy, TABLE, RESIZED)


def _reshape_size(operation: Operation, knowledge: Knowledge) -> Judgement | None:
    remedy = "reshape smaller tensors, or on the host"
    return within(limits.RESHAPE, operation.outputs[0].elements, remedy, knowledge)


def _sequence_size(operation: Operation, knowledge: Knowledge) -> Judgement | None:
    features = _first(operation).shape[-1:] or (1,)
    return within(limits.SEQUENCE_FEATURES, features[0], "use fewer features", knowledge)


def _mean(operation: Operation, knowledge: Knowledge) -> Judgement | None:
    source, axes = _first(operation), _axes(operation)
    depth = len(source.shape) - 1
    if depth in axes and source.shape[depth] % 4:
        return on_cpu(UNSPECIFIED, "reduce over a multiple of 4 channels", TABLE)
    window = 1
    for axis in axes:
        window *= source.shape[axis] if axis != depth else 1
    remedy = "take the mean in two steps, or pool before it"
    return within(limits.MEAN, window, remedy, knowledge)


def _along(axes: Callable[[Operation], tuple[int, ...]]) -> Rule:
    """A rule against working along the batch."""

    def rule(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
        if 0 not in axes(operation):
            return None
        if max(len(tensor.shape) for tensor in operation.activations) > 3:
            return on_cpu(UNSPECIFIED, "work along height, width or channels, not along the batch", TABLE)
        return unknown("work along the first side of a tensor with less than four", "keep the batch", TABLE)

    return rule


def _axes(operation: Operation) -> tuple[int, ...]:
    axes = operation.operand(1)
    return _counted(axes.integers() if axes is not None else (), _first(operation))


def _split_axes(operation: Operation) -> tuple[int, ...]:
    axis, source = operation.operand(0), operation.operand(1)
    return _counted(axis.integers() if axis is not None else (), source or _first(operation))


def _pack_axes(operation: Operation) -> tuple[int, ...]:
    return _counted((int(operation.options.get("axis", 0)),), operation.outputs[0])


def _padded_axes(operation: Operation) -> tuple[int, ...]:
    amounts = operation.operand(1)
    pairs = amounts.integers() if amounts is not None else ()
    return tuple(axis for axis in range(len(pairs) // 2) if any(pairs[2 * axis : 2 * axis + 2]))


def _counted(axes: tuple[int, ...], tensor: Tensor) -> tuple[int, ...]:
    """Axes from the front, those outside of the tensor left out."""
    rank = len(tensor.shape)
    return tuple(sorted({axis % rank for axis in axes if -rank <= axis < rank})) if rank else ()


def _first(operation: Operation) -> Tensor:
    return next((t for t in operation.operands if t.computed), operation.outputs[0])


def _one_slope_per_channel(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    slopes = operation.operand(1)
    if slopes is None or all(side == 1 for side in slopes.shape[:-1]):
        return None
    return on_cpu(UNSPECIFIED, "share the slopes over height and width (shared_axes=[1, 2])", TABLE)


def _plain_slice(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    strides, options = operation.operand(3), operation.options
    plain = strides is None or all(stride == 1 for stride in strides.integers())
    if not plain:
        return on_cpu(UNIT_STRIDES, "slice in steps of one; a strided convolution can skip", TABLE)
    if not options.get("ellipsisMask", 0) and not options.get("newAxisMask", 0):
        return None
    return on_cpu(UNSPECIFIED, "slice without ellipsis or new axis", TABLE)


def _default_weights(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    if not operation.options.get("weightsFormat", 0):
        return None
    return on_cpu(UNSPECIFIED, "keep the weights in the default format", TABLE)


def _transposed_weights(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    weight = operation.operand(1)
    if weight is None or weight.elements < 2 * 2 * 512 * 1024:
        return None
    what = f"a transposed convolution of {weight.elements} weights; one of as many was not mapped"
    return unknown(what, "resize and convolve instead", TABLE, LARGE_TRANSPOSED)


def _transposition(_operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    what = "logs show TRANSPOSE mapped and not mapped, without saying why"
    return unknown(what, "keep one layout (NHWC) from end to end", TABLE, TRANSPOSED)


RESTRICTIONS: dict[str, tuple[Rule, ...]] = {
    "AVERAGE_POOL_2D": (_no_activation,),
    "CONCATENATION": (_no_activation, _padding_by_concatenation),
    "CONV_2D": (_even_dilation, _one_group),
    "DEPTHWISE_CONV_2D": (_even_dilation,),
    "FULLY_CONNECTED": (_default_weights, _rows),
    "MAX_POOL_2D": (_no_activation,),
    "MEAN": (_along(_axes), _mean),
    "PACK": (_along(_pack_axes),),
    "PAD": (_along(_padded_axes),),
    "PRELU": (_one_slope_per_channel,),
    "REDUCE_MAX": (_along(_axes),),
    "REDUCE_MIN": (_along(_axes),),
    "RESHAPE": (_reshape_size,),
    "RESIZE_BILINEAR": (_resize_size,),
    "RESIZE_NEAREST_NEIGHBOR": (_resize_size,),
    "SOFTMAX": (_softmax_size, _rows),
    "SPLIT": (_along(_split_axes),),
    "STRIDED_SLICE": (_plain_slice,),
    "SUM": (_along(_axes),),
    "TRANSPOSE": (_transposition,),
    "TRANSPOSE_CONV": (_transposed_weights,),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (_sequence_size,),
}
