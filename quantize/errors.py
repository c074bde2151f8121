"""Errors of the training side and of quantization.

```
EdgeError
  QuantizeError: CalibrationError, BudgetError
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
