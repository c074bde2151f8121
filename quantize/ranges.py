"""Which range of a tensor the integer grid covers, chosen from what calibration images showed.

A grid step is range / 127. `minmax` keeps every value and pays with coarse steps; `percentile` lets the
largest 0.01 % saturate; `mse` takes the range with the least expected squared error, of clipping and rounding
together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

from quantize.errors import QuantizeError
from quantize.recipe import RANGES

PERCENTILE = 0.9999
LEVELS = 127
BINS = 4096
# Of tensors that are as good as 0 on every calibration image, e.g. the probability of a defect where none is seen.
# Finer steps say nothing beside features and logits of 1 to 30, and runtimes refuse them: int32 cannot hold the bias
# of a convolution that reads the tensor, and XNNPACK adds no tensors whose steps are 1024 times apart.
SMALLEST_RANGE = 2.0**-4


class RangeObserver(ObserverBase):
    """Histogram of |x| over all calibration images; the range follows from it by `method`.

    With an affine `qscheme` the tensor is taken to be never negative, and its grid begins at 0 (zero point -128).

    The histogram spans [0, top); when a larger value comes, `top` doubles and neighbouring bins are merged,
    so no image is looked at twice and the order of images does not matter.
    """

    def __init__(self, method: str = RANGES[0], dtype: torch.dtype = torch.int8, **facts: Any) -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.one_sided = facts.get("qscheme") is torch.per_tensor_affine
        self.steps = 2 * LEVELS + 1 if self.one_sided else LEVELS
        if method not in RANGES:
            raise QuantizeError(f"unknown method {method!r} to choose ranges", wanted=", ".join(RANGES))
        self.method = method
        self.quant_min, self.quant_max = facts.get("quant_min"), facts.get("quant_max")
        self.qscheme = facts.get("qscheme", torch.per_tensor_symmetric)
        self.register_buffer("counts", torch.zeros(BINS, dtype=torch.float64))
        self.register_buffer("largest", torch.zeros(()))
        self.top = 2.0**-10
        self.fixed: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        magnitude = x.detach().abs().flatten().float()
        highest = magnitude.max()
        largest = float(highest)
        if not largest < float("inf"):  # NaN compares false
            raise QuantizeError("an activation is not finite on a calibration image", got=largest)
        while largest >= self.top:
            self.top *= 2
            self.counts = torch.cat([self.counts.view(-1, 2).sum(1), self.counts.new_zeros(BINS // 2)])
        self.counts += torch.histc(magnitude, BINS, 0.0, self.top)
        # Zero lies on every grid, and a ReLU's many zeros must not vote for fine steps.
        self.counts[0] -= magnitude.numel() - torch.count_nonzero(magnitude)
        self.largest = torch.maximum(self.largest, highest)
        return x

    def fix(self, scale: float) -> None:
        """From now on the step is this one, to the last bit, whatever is seen."""
        self.fixed = scale

    def shorten(self, useful: float) -> None:
        """From now on the range ends at `useful`, if it did not before."""
        if useful < self.range():
            self.fix(useful / self.steps)

    def range(self) -> float:
        """The largest magnitude that the grid represents."""
        if self.fixed is not None:
            return self.fixed * self.steps
        largest = float(self.largest)
        if self.method == "percentile":
            covered = self.counts.cumsum(0) / self.counts.sum().clamp_min(1)
            edge = int(torch.searchsorted(covered, PERCENTILE)) + 1
            largest = min(largest, edge * self.top / BINS)
        elif self.method == "mse" and largest > 0:
            largest = self._least_error(largest)
        return max(largest, SMALLEST_RANGE)

    def _least_error(self, largest: float) -> float:
        centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (self.top / BINS)
        candidates = largest * torch.linspace(0.2, 1.0, 161, dtype=torch.float64)
        excess = (centres[None] - candidates[:, None]).clamp_min(0)
        rounding = (candidates / self.steps).square()[:, None] / 12 * (excess == 0)
        error = ((excess.square() + rounding) * self.counts).sum(1)
        return float(candidates[error.argmin()])

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        zero_point = -LEVELS - 1 if self.one_sided else 0
        scale = self.range() / self.steps if self.fixed is None else self.fixed
        return torch.tensor([scale]), torch.full((1,), zero_point, dtype=torch.int32)
