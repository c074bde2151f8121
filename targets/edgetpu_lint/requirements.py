"""What the compiler asks of every operation, whichever it is."""

from __future__ import annotations

from targets.edgetpu_lint import limits
from targets.edgetpu_lint.evidence import (
    BATCH,
    COMPUTED_WEIGHTS,
    DECODER,
    DEEPLAB,
    DYNAMIC,
    FLOAT_ENDS,
    FLOAT_INPUT,
    LARGE_ACTIVATIONS,
    LOG_YOLO9,
    MODEL_REQUIREMENTS,
    POSTPROCESS,
    SEQUENCE,
    TABLE,
    Knowledge,
)
from targets.edgetpu_lint.graph import Operation
from targets.edgetpu_lint.judgement import (
    DYNAMIC_SIZE,
    NOT_CONSTANT,
    NOT_SUPPORTED,
    UNSPECIFIED,
    WRONG_RANK,
    WRONG_TYPE,
    Judgement,
    Rule,
    on_cpu,
    unknown,
)
from targets.edgetpu_lint.operations import COMPILE_TIME, CONSTANT, NEWEST_VERSIONS, SUPPORTED


def _custom(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    if not operation.custom:
        return None
    remedy = f"end the network before {operation.name}, and run it on the host"
    return on_cpu(WRONG_TYPE, remedy, DECODER, POSTPROCESS, TABLE)


def _dynamic(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    if all(side >= 0 for tensor in operation.activations for side in tensor.shape):
        return None
    remedy = "give every input a fixed shape with batch 1, and convert again"
    return on_cpu(DYNAMIC_SIZE, remedy, MODEL_REQUIREMENTS, DYNAMIC)


def _listed(operation: Operation, knowledge: Knowledge) -> Judgement | None:
    if any(knowledge(evidence) for evidence in SUPPORTED.get(operation.name, ())):
        return None
    if operation.name == "DEQUANTIZE":
        return on_cpu(
            WRONG_TYPE, "end the network in 8-bit outputs; dequantize on the host", TABLE, FLOAT_ENDS
        )
    remedy = "write it with operations of the vendor's table, or move it behind the network's last layers"
    seen = {"ARG_MAX": (DEEPLAB,), "GATHER": (LOG_YOLO9,)}.get(operation.name, ())
    return on_cpu(NOT_SUPPORTED, remedy, TABLE, *seen)


def _types(operation: Operation, knowledge: Knowledge) -> Judgement | None:
    kinds = {tensor.dtype for tensor in operation.activations if not tensor.is_eight_bit}
    allowed = {"INT8", "UINT8", "INT32"}
    if operation.name == "UNIDIRECTIONAL_SEQUENCE_LSTM" and knowledge(SEQUENCE):
        allowed.add("INT16")  # its cell state
    kinds |= {t.dtype for t in operation.operands if not t.computed and t.dtype not in allowed}
    if not kinds:
        return None
    if operation.name == "QUANTIZE":
        remedy = "let the network begin with 8-bit inputs: quantize on the host, not in the file"
        return on_cpu(UNSPECIFIED, remedy, FLOAT_INPUT, FLOAT_ENDS, MODEL_REQUIREMENTS)
    remedy = f"quantize it fully to int8; {', '.join(sorted(kinds))} runs on the CPU"
    return on_cpu(WRONG_TYPE, remedy, MODEL_REQUIREMENTS, FLOAT_ENDS)


def _scales(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    if all(tensor.scaled for tensor in operation.activations):
        return None
    return unknown("an 8-bit tensor without a scale", "quantize the network fully", MODEL_REQUIREMENTS)


def _constants(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    positions = (*CONSTANT.get(operation.name, ()), *COMPILE_TIME.get(operation.name, ()))
    loose = [
        tensor
        for position, tensor in enumerate(operation.inputs)
        if tensor is not None
        and not tensor.is_constant
        and not tensor.state
        and (position in positions or not tensor.computed)
    ]
    if not loose:
        return None
    if any(tensor.outside for tensor in loose):
        remedy = "write the constants into the flatbuffer; they lie behind it"
    else:
        remedy = "make weights, biases, shapes and axes constants of the file"
    return on_cpu(NOT_CONSTANT, remedy, MODEL_REQUIREMENTS, COMPUTED_WEIGHTS)


def _ranks(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    if all(side == 1 for tensor in operation.activations for side in tensor.shape[:-3]):
        return None
    remedy = "batch 1, and no more than three sides larger than one"
    return on_cpu(WRONG_RANK, remedy, MODEL_REQUIREMENTS, BATCH)


def _versions(operation: Operation, _knowledge: Knowledge) -> Judgement | None:
    newest = NEWEST_VERSIONS.get(operation.name)
    if newest is None or operation.version <= newest:
        return None
    remedy = f"write version {newest} or older, as converters of TensorFlow 2.5's age do"
    return unknown(f"version {operation.version}, newer than any that was seen compiled", remedy)


def _sizes(operation: Operation, knowledge: Knowledge) -> Judgement | None:
    largest = max(tensor.elements for tensor in (*operation.activations, *operation.outputs))
    if largest <= limits.ACTIVATION.largest_mapped(knowledge):
        return None
    return unknown(
        f"a tensor of {largest} elements, larger than any that was seen compiled",
        "make the input smaller",
        LARGE_ACTIVATIONS,
    )


REQUIREMENTS: tuple[Rule, ...] = (
    _custom, _dynamic, _listed, _constants, _types, _scales, _ranks, _versions, _sizes,
)  # fmt: skip
