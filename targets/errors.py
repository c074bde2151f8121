"""Errors of lowering.

```
EdgeError
  TargetError: UnsupportedOpError, CompilerError, ParityError, KnownFaultError
```
"""

from __future__ import annotations

from typing import ClassVar

from edge.errors import EdgeError


class TargetError(EdgeError):
    """The network cannot become this target's files, or the device profile does not allow them."""


class UnsupportedOpError(TargetError):
    """The lowered file holds an operation, a type or a version that the device does not run."""


class CompilerError(TargetError):
    """A vendor's compiler or builder is missing, or refused the file."""

    exit_code: ClassVar[int] = 4


class ParityError(TargetError):
    """The artifact was measured and differs from full precision by more than its budget."""

    exit_code: ClassVar[int] = 3


class KnownFaultError(TargetError):
    """The lowered graph holds a pattern that is known to go wrong on its target."""

    exit_code: ClassVar[int] = 3
