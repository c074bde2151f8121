"""What is said of one operation, and the compiler's own words for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from targets.edgetpu_lint.evidence import TABLE, Evidence, Knowledge
from targets.edgetpu_lint.graph import Operation
from targets.edgetpu_lint.limits import Limit

# Reasons in a compiler's log.
UNSPECIFIED = "Operation is otherwise supported, but not mapped due to some unspecified limitation"
NOT_SUPPORTED = "Operation not supported"
WRONG_TYPE = "Operation is working on an unsupported data type"
NOT_CONSTANT = "Filter, bias, or other param is not constant at compile-time"
WRONG_RANK = "Tensor has unsupported rank (up to 3 innermost dimensions mapped)"
UNIT_STRIDES = "Only Strided-Slice with unitary strides supported"
DYNAMIC_SIZE = "Attempting to use a delegate that only supports static-sized tensors"


@dataclass(frozen=True)
class Judgement:
    """What the compiler is expected to say of an operation.

    Attributes:
        mapped: True, False, or None where no witness decides.
        reason, remedy: for people; empty when it is mapped.
        evidence: the witnesses.
    """

    mapped: bool | None
    reason: str = ""
    remedy: str = ""
    evidence: tuple[Evidence, ...] = ()


Rule = Callable[[Operation, Knowledge], "Judgement | None"]


def on_cpu(reason: str, remedy: str, *evidence: Evidence) -> Judgement:
    """It stays on the CPU."""
    return Judgement(False, reason, remedy, evidence)


def unknown(what: str, remedy: str, *evidence: Evidence) -> Judgement:
    """No witness decides."""
    return Judgement(None, f"No evidence: {what}", remedy, evidence)


def within(limit: Limit, size: int, remedy: str, knowledge: Knowledge) -> Judgement | None:
    """What a limit says of `size`; None where it was seen mapped."""
    mapped, evidence = limit.place(size, knowledge)
    if mapped:
        return None
    if mapped is None:
        largest = limit.largest_mapped(knowledge)
        return unknown(f"{size} {limit.what}; at most {largest} were seen mapped", remedy, TABLE)
    return on_cpu(UNSPECIFIED, remedy, *(() if evidence is None else (evidence,)), TABLE)
