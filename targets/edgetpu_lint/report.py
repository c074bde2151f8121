"""The lint's answer: what goes where, why, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from targets.edgetpu_lint.evidence import ONE_SUBGRAPH, Knowledge, everything
from targets.edgetpu_lint.graph import Graph, Operation, read_graph
from targets.edgetpu_lint.judgement import Judgement
from targets.edgetpu_lint.operations import COMPILE_TIME
from targets.edgetpu_lint.partition import first_run
from targets.edgetpu_lint.rules import judge

EDGETPU, CPU, UNKNOWN = "edgetpu", "cpu", "unknown"
PLACES = (EDGETPU, CPU, UNKNOWN)
# What the chip has for parameters; activations and instructions need some of it too.
ON_CHIP_BYTES = 8 * 2**20
STRANDED = "More than one subgraph is not supported"


@dataclass(frozen=True)
class Finding:
    """One operation that is not predicted on the Edge TPU.

    Attributes:
        operation: its index in the file's main graph.
        type: its name.
        placement: `cpu` or `unknown`.
        reason: in the compiler's words where it has some.
        remedy: what to do.
        evidence: what the prediction rests on.
    """

    operation: int
    type: str
    placement: str
    reason: str
    remedy: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What the compiler is predicted to do.

    Attributes:
        on_edgetpu, on_cpu, unknown: operation -> count.
        subgraphs: how many the Edge TPU gets.
        parameters_bytes: constants of the operations that are not predicted on the CPU.
        findings: every operation that is not predicted on the Edge TPU, in the file's order.
    """

    on_edgetpu: dict[str, int]
    on_cpu: dict[str, int]
    unknown: dict[str, int]
    subgraphs: int
    parameters_bytes: int
    findings: tuple[Finding, ...]

    @property
    def parameters_fit(self) -> bool:
        """Whether the parameters are no more than the chip's memory."""
        return self.parameters_bytes <= ON_CHIP_BYTES

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "parameters_fit": self.parameters_fit}

    def text(self, name: str) -> str:
        """For people: a headline, a table of counts, and each finding once."""
        on_edgetpu, on_cpu, unknown = (sum(counts.values()) for counts in self._counts())
        head = (
            f"{name}: of {on_edgetpu + on_cpu + unknown} operations, {on_edgetpu} on the Edge TPU, "
            f"{on_cpu} on the CPU, {unknown} unknown; sub-graphs on the Edge TPU: {self.subgraphs}"
        )
        fit = "fit" if self.parameters_fit else "do not fit, and are sent again for every frame:"
        size = f"parameters {fit} the {ON_CHIP_BYTES / 2**20:.0f} MiB on the chip: {self.parameters_bytes:,} bytes"
        return "\n".join([head, size, "", *self._table(), *self._explanations()])

    def _counts(self) -> tuple[dict[str, int], ...]:
        return self.on_edgetpu, self.on_cpu, self.unknown

    def _table(self) -> list[str]:
        names = sorted({name for counts in self._counts() for name in counts})
        width = max([len("operation"), *map(len, names)])
        lines = [f"{'operation':{width}}  {'Edge TPU':>8}  {'CPU':>5}  {'unknown':>7}"]
        for name in names:
            cells = [counts.get(name, "") for counts in self._counts()]
            lines.append(f"{name:{width}}  {cells[0]:>8}  {cells[1]:>5}  {cells[2]:>7}".rstrip())
        return lines

    def _explanations(self) -> list[str]:
        lines: list[str] = []
        alike: dict[tuple[str, ...], list[Finding]] = {}
        for finding in self.findings:
            key = (finding.placement, finding.reason, finding.remedy, *finding.evidence)
            alike.setdefault(key, []).append(finding)
        for (placement, reason, remedy, *evidence), findings in alike.items():
            kinds = ", ".join(f"{count} {kind}" for kind, count in _counted(f.type for f in findings).items())
            where = _ranges([finding.operation for finding in findings])
            lines += ["", f"{placement}: {kinds} (operation {where})", f"  reason:   {reason}"]
            lines += [f"  remedy:   {remedy}", *(f"  evidence: {one}" for one in evidence)]
        return lines


def lint_file(path: Path, knowledge: Knowledge = everything) -> Report:
    """Predict what the Edge TPU compiler makes of a TFLite file.

    Args:
        knowledge: the witnesses that may be heard; all of them, unless the prediction itself is being tested.

    Raises:
        InputError, BackendUnavailableError: see `read_graph`.
    """
    return lint(read_graph(path), knowledge)


def lint(graph: Graph, knowledge: Knowledge = everything) -> Report:
    """`lint_file` of a graph that is read already."""
    operations = graph.operations
    judgements = [judge(operation, knowledge) for operation in operations]
    # An unknown operation may end the run or may not; what both ways agree on is known.
    least = first_run(operations, [judgement.mapped is True for judgement in judgements])
    most = first_run(operations, [judgement.mapped is not False for judgement in judgements])
    placed = []
    findings = []
    for operation, judgement in zip(operations, judgements, strict=True):
        number = operation.index
        placement = _placement(judgement, number in least, number in most)
        placed.append((placement, operation))
        if placement != EDGETPU:
            findings.append(_finding(operation, placement, judgement, judgements))
    for name in graph.others:
        remedy = "write the network as one graph, without loops or branches"
        findings.append(Finding(-1, name, UNKNOWN, "No evidence: a further graph of the file", remedy))
    counts = {
        place: _counted(operation.name for placement, operation in placed if placement == place)
        for place in PLACES
    }
    for name in graph.others:
        counts[UNKNOWN][name] = counts[UNKNOWN].get(name, 0) + 1
    return Report(
        on_edgetpu=counts[EDGETPU],
        on_cpu=counts[CPU],
        unknown=counts[UNKNOWN],
        subgraphs=1 if counts[EDGETPU] else 0,
        parameters_bytes=_parameters_bytes(operation for placement, operation in placed if placement != CPU),
        findings=tuple(findings),
    )


def _placement(judgement: Judgement, in_least: bool, in_most: bool) -> str:
    if judgement.mapped is False or not (in_least or in_most):
        return CPU
    return EDGETPU if judgement.mapped and in_least and in_most else UNKNOWN


def _finding(
    operation: Operation, placement: str, judgement: Judgement, judgements: Sequence[Judgement]
) -> Finding:
    number, name = operation.index, operation.name
    if judgement.mapped is False or (judgement.mapped is None and placement == UNKNOWN):
        evidence = tuple(one.text for one in judgement.evidence)
        return Finding(number, name, placement, judgement.reason, judgement.remedy, evidence)
    # It would be taken, were it not for another operation.
    wanted = None if placement == UNKNOWN else False
    blocking = [before for before, found in enumerate(judgements[:number]) if found.mapped is wanted]
    remedy = (
        f"map operation {_ranges(blocking)} first" if blocking else "let it depend on mapped operations only"
    )
    reason = STRANDED if placement == CPU else "No evidence: it depends on an unknown operation"
    return Finding(number, name, placement, reason, remedy, (ONE_SUBGRAPH.text,))


def _parameters_bytes(operations: Iterable[Operation]) -> int:
    """Bytes of the constants, each counted once, without those that are gone after compiling."""
    sizes: dict[int, int] = {}
    for operation in operations:
        gone = COMPILE_TIME.get(operation.name, ())
        for position, tensor in enumerate(operation.inputs):
            if tensor is not None and tensor.data is not None and position not in gone:
                sizes[tensor.index] = len(tensor.data)
    return sum(sizes.values())


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _ranges(numbers: Sequence[int]) -> str:
    """`3, 5-8` of 3, 5, 6, 7, 8."""
    parts = []
    for _, group in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(parts)
