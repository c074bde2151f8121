"""What to write in place of an operation that has no place on the integer grid (docs/own-network.md)."""

from __future__ import annotations

_ACTIVATION = "nn.ReLU6 or nn.ReLU directly behind the convolution"
_NORM = "nn.BatchNorm2d behind the convolution: it is folded away"
_CONSTANT = "the constant in the weights or the bias of the convolution before it"
_MAP = "flatten(1) of a map [N, C, 1, 1]; other reshapes order values by layout"
_POOL = "x.mean((2, 3), keepdim=True) for the whole map; for windows a convolution with a stride"
_ENLARGE = 'nn.Upsample(scale_factor=2, mode="nearest"), with a 3x3 convolution behind it'

GENERAL = "convolutions, ReLU6, sums, products, means, max pools and nearest upsampling"
INSTEAD = {
    "sigmoid": "nothing at the end of the network, whose outputs are logits; as a gate"
    " relu6(z + 3)/6 written as in docs/quantization.md",
    "softmax": "nothing at the end of the network, whose outputs are logits; one channel in place of two classes",
    "log_softmax": "nothing at the end of the network, whose outputs are logits",
    **dict.fromkeys(
        ("silu", "hardswish", "hardsigmoid", "gelu", "leaky_relu", "elu", "mish", "prelu", "selu", "softplus", "tanh"),
        _ACTIVATION,
    ),
    **dict.fromkeys(("relu", "relu6", "hardtanh"), "the activation directly behind a convolution or a sum"
                    " that nothing else reads; behind a max pool put it before"),
    "batch_norm": "nn.BatchNorm2d with running statistics: it is folded away",
    **dict.fromkeys(("group_norm", "layer_norm", "instance_norm"), _NORM),
    **dict.fromkeys(
        ("cat", "concat", "concatenate", "stack"),
        "a sum: a convolution for each tensor, the results added; the same linear map as one convolution"
        " of the concatenation (docs/quantization.md)",
    ),
    **dict.fromkeys(("conv_transpose2d", "pixel_shuffle"), _ENLARGE),
    **dict.fromkeys(
        ("upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest_exact2d", "_upsample_nearest_exact2d"),
        _ENLARGE,
    ),
    **dict.fromkeys(("adaptive_avg_pool2d", "avg_pool2d"), _POOL),
    **dict.fromkeys(
        ("adaptive_max_pool2d", "amax", "max"),
        "a chain of max pools, e.g. 4x4 and 4x4 for a map of 16x16",
    ),
    "linear": "nn.Conv2d(inputs, outputs, 1) on a map [N, C, 1, 1], and flatten(1) behind it",
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div"), f"a sum or a product of two tensors; {_CONSTANT}"),
    "pad": "the convolution's own padding, zeros",
    **dict.fromkeys(("squeeze", "unsqueeze", "permute", "transpose"), _MAP),
}  # fmt: skip


def instead_of(operation: object) -> str:
    """What to build it from, by an operation's name in a graph, such as ``aten.relu_.default``."""
    parts = str(operation).split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    return INSTEAD.get(name, INSTEAD.get(name.rstrip("_"), f"build it from {GENERAL}"))
