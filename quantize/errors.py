"""Errors of the training side and of quantization.

```
EdgeError
  QuantizeError: CalibrationError, BudgetError, GuaranteeError
```
"""

from __future__ import annotations

from typing import ClassVar

from edge.errors import EdgeError


class QuantizeError(EdgeError):
    """The network cannot be put on the integer grid."""


class CalibrationError(QuantizeError):
    """The images that should set the ranges of the grid are missing, too few or not allowed."""


class BudgetError(QuantizeError):
    """The quantized network was measured and changes more verdicts than the budget allows."""

    exit_code: ClassVar[int] = 3


class GuaranteeError(QuantizeError):
    """The parts that were kept for it do not support the bound on the miss rate that was asked for."""

    exit_code: ClassVar[int] = 3
