"""Whether the compiler would take one operation, looked at by itself. Where it stands in the graph comes later."""

from __future__ import annotations

from targets.edgetpu_lint.evidence import Knowledge, everything
from targets.edgetpu_lint.graph import Operation
from targets.edgetpu_lint.judgement import Judgement, unknown
from targets.edgetpu_lint.operations import SUPPORTED
from targets.edgetpu_lint.requirements import REQUIREMENTS
from targets.edgetpu_lint.restrictions import RESTRICTIONS


def judge(operation: Operation, knowledge: Knowledge = everything) -> Judgement:
    """Judge one operation by the first rule that speaks, else by the table of supported operations.

    A rule that keeps it from the Edge TPU speaks only where one of its witnesses may be heard.
    """
    for rule in (*REQUIREMENTS, *RESTRICTIONS.get(operation.name, ())):
        found = rule(operation, knowledge)
        if found is not None and (found.mapped is None or any(map(knowledge, found.evidence))):
            return found
    heard = tuple(filter(knowledge, SUPPORTED.get(operation.name, ())))
    return Judgement(True, evidence=heard) if heard else unknown("an operation that nobody speaks of", "")
