"""Whether the compiler would take one operation, looked at by itself. Where it stands in the graph comes later."""

from __future__ import annotations

from targets.edgetpu_lint.evidence import Knowledge, everything
from targets.edgetpu_lint.graph import Operation
from targets.edgetpu_lint.judgement import Judgement
from targets.edgetpu_lint.operations import SUPPORTED
from targets.edgetpu_lint.requirements import REQUIREMENTS
from targets.edgetpu_lint.restrictions import RESTRICTIONS


def judge(operation: Operation, knowledge: Knowledge = everything) -> Judgement:
    """Judge one operation by the first rule that speaks, else by the table of supported operations."""
    for rule in (*REQUIREMENTS, *RESTRICTIONS.get(operation.name, ())):
        found = rule(operation, knowledge)
        if found is not None:
            return found
    return Judgement(True, evidence=tuple(filter(knowledge, SUPPORTED[operation.name])))
