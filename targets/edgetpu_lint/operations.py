"""The operations by name: which are supported at all, and which of their operands have to be constants."""

from __future__ import annotations

from targets.edgetpu_lint.evidence import (
    DECODER,
    DECODER_INT8,
    DEEP,
    DEEPLAB,
    FLOAT_INPUT,
    GABOR,
    LOOMING,
    MOBILENET,
    POOLED,
    SEQUENCE,
    SOFT_ARGMAX,
    SUMS,
    TABLE,
    Evidence,
)
from targets.tflite_file import NEWEST_VERSIONS as RUN

# The vendor's table for runtime 14 (compiler 16), under TFLite's names.
_TABLE = (
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXPAND_DIMS", "FULLY_CONNECTED",
    "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PACK", "PAD", "PRELU",
    "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQUARED_DIFFERENCE",
    "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
)  # fmt: skip
# Seen mapped in ground truth.
_SEEN: dict[str, tuple[Evidence, ...]] = {
    "ADD": (SUMS, LOOMING),
    "AVERAGE_POOL_2D": (MOBILENET, LOOMING),
    "CONCATENATION": (DECODER, SOFT_ARGMAX),
    "CONV_2D": (FLOAT_INPUT, MOBILENET, DEEP, LOOMING),
    "DEPTHWISE_CONV_2D": (MOBILENET, GABOR),
    "FULLY_CONNECTED": (POOLED, SEQUENCE, SOFT_ARGMAX),
    "MAX_POOL_2D": (POOLED,),
    "MUL": (LOOMING,),
    "PAD": (DEEP, DECODER_INT8),
    "QUANTIZE": (DECODER_INT8, GABOR),
    "RESHAPE": (POOLED, MOBILENET, LOOMING),
    "RESIZE_BILINEAR": (DEEPLAB,),
    "SOFTMAX": (POOLED, MOBILENET, SOFT_ARGMAX),
    "TILE": (DEEPLAB,),  # not in the table, and mapped all the same
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (SEQUENCE,),
}
SUPPORTED: dict[str, tuple[Evidence, ...]] = {
    name: (*((TABLE,) if name in _TABLE else ()), *_SEEN.get(name, ())) for name in sorted({*_TABLE, *_SEEN})
}
# Operands that say how to compute, and are gone after compiling.
COMPILE_TIME: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("MEAN", "REDUCE_MAX", "REDUCE_MIN", "SUM"), (1,)),
    **dict.fromkeys(("EXPAND_DIMS", "PAD", "RESHAPE", "TILE", "TRANSPOSE"), (1,)),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), (1,)),
    "SLICE": (1, 2),
    "SPLIT": (0,),
    "STRIDED_SLICE": (1, 2, 3),
    "TRANSPOSE_CONV": (0,),
}
# Operands that are kept as parameters.
CONSTANT: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), (1, 2)),
    "PRELU": (1,),
    "TRANSPOSE_CONV": (1, 3),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (*range(1, 18), *range(20, 24)),
}
# Newest versions that ran in an interpreter of the compiler's age, or were seen mapped in ground truth.
NEWEST_VERSIONS: dict[str, int] = {
    **RUN,
    "FULLY_CONNECTED": 4,
    "SOFTMAX": 2,
    "TILE": 1,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 1,
}
