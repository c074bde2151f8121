"""Folding batch norm into the convolution before it, as every exporter does."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode whose batch norms went into the convolutions before them.

    Works on `nn.Sequential`, where order is what runs. In eval mode the function is unchanged up to float32
    rounding.

    Raises:
        ValueError: a batch norm does not follow a convolution in a `Sequential`.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for index, (name, child) in enumerate(list(module.named_children())):
            if isinstance(child, nn.BatchNorm2d):
                before, conv = list(module.named_children())[index - 1] if index else ("", None)
                if not isinstance(conv, nn.Conv2d):
                    raise ValueError(f"batch norm {name} in {module} has no convolution before it")
                setattr(module, before, fuse_conv_bn_eval(conv, child))
                setattr(module, name, nn.Identity())
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise ValueError(f"batch norms outside of a Sequential cannot be folded: {', '.join(left)}")
    return folded
