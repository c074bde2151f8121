"""What the Edge TPU compiler will map, before anyone has a compiler.

The compiler is closed and runs on x86-64 alone. This predicts from the int8 TFLite file, for each operation,
whether it gets to the Edge TPU, with the reason and the remedy; the number of sub-graphs; and whether the
parameters fit the memory on the chip. Every rule names its witnesses (`evidence`), nothing is looked up by name or
digest, and an operation that no witness speaks of is `unknown`, never assumed mapped. See docs/edgetpu.md.
"""

from __future__ import annotations

from targets.edgetpu_lint.comparison import differences
from targets.edgetpu_lint.graph import read_graph
from targets.edgetpu_lint.report import Finding, Report, lint, lint_file

__all__ = ["Finding", "Report", "differences", "lint", "lint_file", "read_graph"]
