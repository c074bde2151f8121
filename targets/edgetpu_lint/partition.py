"""Which operations end up together on the Edge TPU.

The compiler is a delegate of TensorFlow Lite: the interpreter cuts the graph into runs of operations that the
delegate takes and runs that it does not, each as large as the data allow, and by default the compiler compiles the
first run and leaves everything else to the CPU ("More than one subgraph is not supported").
"""

from __future__ import annotations

from collections.abc import Sequence

from targets.edgetpu_lint.graph import Operation


def first_run(operations: Sequence[Operation], taken: Sequence[bool]) -> frozenset[int]:
    """Indices of the operations that the delegate compiles.

    Args:
        operations: in the order in which the graph runs.
        taken: for each, whether the delegate takes it.
    """
    waiting = {output.index for operation in operations for output in operation.outputs}
    left = list(range(len(operations)))
    while left:
        # The first operation whose inputs are there says which kind of run this is.
        kind: bool | None = None
        run: list[int] = []
        before = -1
        while len(run) > before:
            before, rest = len(run), []
            for number in left:
                ready = not any(operand.index in waiting for operand in operations[number].operands)
                if ready and kind is None:
                    kind = taken[number]
                if ready and taken[number] == kind:
                    run.append(number)
                    waiting -= {output.index for output in operations[number].outputs}
                else:
                    rest.append(number)
            left = rest
        if kind or not run:  # no run: the graph goes in circles
            return frozenset(run)
    return frozenset()
