"""What a network answers while it trains. In eval mode it answers the two tensors `(defect, mask)` alone."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TrainingOutput(NamedTuple):
    """Everything that the loss looks at; what a network does not have is None.

    Attributes:
        defect: verdict logits, float N x 1; None where the verdict is not learned but pooled from the mask.
        mask: mask logits, float N x 1 x h x w.
        first_mask: mask logits before a correction that made `mask` of them, N x 1 x h x w.
        coarse: logits at the encoder's stride, N x 1 x H/16 x W/16: is there a defect in this cell?
        focus: without gradient, >= 0, N x 1 x h' x w'. The mask loss of a pixel counts 1 + focus times.
    """

    defect: Tensor | None
    mask: Tensor
    first_mask: Tensor | None = None
    coarse: Tensor | None = None
    focus: Tensor | None = None
