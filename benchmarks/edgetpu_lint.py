"""`make bench-edgetpu-lint`: how well the lint foretells the Edge TPU compiler, and what it says of our own files.

Ground truth is real models with what the compiler made of them (`expected.json`); they stay where they are. A model
counts as foretold when every operation is counted in its place, none is unknown, and the sub-graphs are as many.
Leaving a family out means that no rule may rest on its models: what is then foretold, others have taught.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import results_file
from targets.edgetpu_compiler import parse_log
from targets.edgetpu_lint import Report, lint, lint_file, read_graph
from targets.edgetpu_lint.evidence import REPORT, Knowledge, everything, without
from targets.edgetpu_lint.graph import Graph

BAR_ALL, BAR_WITH_CPU = 95.0, 90.0
SIDE_PX = 256


@dataclass(frozen=True)
class Case:
    """One ground-truth model.

    Attributes:
        family: owner of the repository that it is from.
        expected: its entry in `expected.json`.
    """

    family: str
    expected: dict[str, Any]
    graph: Graph

    def is_foretold(self, report: Report) -> bool:
        """Every operation is counted in its place, and none is unknown."""
        want = self.expected
        return (report.on_edgetpu, report.on_cpu, report.unknown, report.subgraphs) == (
            want["on_edgetpu"],
            want["on_cpu"],
            {},
            want["edgetpu_subgraphs"],
        )

    def is_wrong(self, report: Report) -> bool:
        """An operation is said to be where it is not; saying nothing of it is not wrong."""
        want = self.expected
        pairs = ((report.on_edgetpu, want["on_edgetpu"]), (report.on_cpu, want["on_cpu"]))
        return any(count > found.get(name, 0) for said, found in pairs for name, count in said.items())


def read_cases(folder: Path) -> list[Case]:
    """All models of a ground-truth folder, read once."""
    entries = json.loads((folder / "expected.json").read_text())
    return [
        Case(entry["origin"].split("/")[0], entry, read_graph(folder / entry["model"])) for entry in entries
    ]


def foretold(cases: Sequence[Case], knowledge: Knowledge = everything) -> int:
    """How many of `cases` are foretold exactly."""
    return sum(case.is_foretold(lint(case.graph, knowledge)) for case in cases)


def reasons(case: Case) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]] | None:
    """(operation, reason) on the CPU, as predicted and as in the compiler's log; None where there is no log."""
    if not case.expected.get("compiler_log"):
        return None
    log = parse_log(case.expected["compiler_log"])
    said = {(name, reason): count for name, found in log.unmapped.items() for reason, count in found.items()}
    findings = lint(case.graph).findings
    return Counter((finding.type, finding.reason) for finding in findings), Counter(said)


def truth_rows(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Rows about ground truth."""
    row = results_file.row
    hard = [case for case in cases if case.expected["on_cpu"]]
    for id, what, chosen, bar in (
        ("truth.all", "models foretold exactly", cases, BAR_ALL),
        ("truth.with_cpu", "those with an operation on the CPU", hard, BAR_WITH_CPU),
    ):
        right = foretold(chosen)
        share = 100 * right / len(chosen)
        note = f"{right} of {len(chosen)}"
        yield row(id, what, share, "%", f">= {bar:.0f} %", share >= bar, note)
    unknown = Counter(name for case in cases for name in lint(case.graph).unknown)
    yield row(
        "truth.unknown", "operations of them that are unknown", sum(unknown.values()), note=", ".join(unknown)
    )
    logged = [pair for pair in map(reasons, cases) if pair is not None]
    agree = sum(predicted == said for predicted, said in logged)
    yield row(
        "truth.reasons", "logs whose reasons are foretold too", agree, f"of {len(logged)}",
        note=f"{sum(bool(said) for _, said in logged)} of them have an operation on the CPU",
    )  # fmt: skip
    total = [0, 0]
    for family in sorted({case.family for case in cases}):
        own = [case for case in cases if case.family == family]
        silent = without((family,))
        right, wrong = foretold(own, silent), sum(case.is_wrong(lint(case.graph, silent)) for case in own)
        total = [total[0] + right, total[1] + wrong]
        yield row(
            f"left_out.{family}", f"{family}: foretold without any rule of its models", right, f"of {len(own)}",
            note=f"{wrong} wrong, {len(own) - right - wrong} with something unknown",
        )  # fmt: skip
    yield row(
        "left_out", "every family foretold from the others", total[0], f"of {len(cases)}",
        note=f"{total[1]} wrong, {len(cases) - sum(total)} with something unknown",
    )  # fmt: skip
    strict = sum(
        foretold([case for case in cases if case.family == family], without((family, REPORT)))
        for family in {case.family for case in cases}
    )
    yield row("left_out.reports", "the same, published logs left out too", strict, f"of {len(cases)}")


def own_rows(size_px: int) -> Iterator[dict[str, Any]]:
    """Rows about the files that our own export writes, untrained: what is mapped does not hang on the weights."""
    from quantize import models

    for name in models.names():
        for size in ("nano", "small"):
            with TemporaryDirectory() as folder:
                path = Path(folder) / "model.tflite"
                path.write_bytes(own_file(name, size, size_px))
                report = lint_file(path)
            on_cpu, unknown = sum(report.on_cpu.values()), sum(report.unknown.values())
            counts = f"{sum(report.on_edgetpu.values())} mapped, {unknown} unknown"
            listed = f": {', '.join(report.unknown)}" if unknown else ""
            fit = "fit" if report.parameters_fit else "do not fit"
            yield results_file.row(
                f"own.{name}.{size}", f"{name} {size} at {size_px} px: operations predicted on the CPU", on_cpu,
                bar="0", passed=on_cpu == 0,
                note=f"{counts}{listed}; parameters {report.parameters_bytes:,} bytes, {fit}",
            )  # fmt: skip


def own_file(name: str, size: str, size_px: int) -> bytes:
    """What `export --target edgetpu` writes for an untrained network, calibrated on noise."""
    import numpy as np
    import torch

    from edge.preprocess import InputSpec
    from quantize import models
    from targets.lowering import Network
    from targets.tflite_writer import tflite

    torch.manual_seed(0)
    tiles = np.random.default_rng(0).integers(0, 256, (2, size_px, size_px, 1), np.uint8)
    model = models.build({"name": name, "size": size, "channels": 1}).eval()
    network = Network(model, InputSpec(size_px, size_px, 1), tiles, name)
    return tflite(network.grid.folded, ["input"], ["defect", "mask"])


def main(write: Callable[..., Path] = results_file.write) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("EDGEQC_GROUND_TRUTH") or "../shared/edgetpu_ground_truth"
    parser.add_argument("--truth", type=Path, default=Path(default), help="folder with expected.json")
    parser.add_argument("--size-px", type=int, default=SIDE_PX, help="input of our own files")
    options = parser.parse_args()
    rows = [*truth_rows(read_cases(options.truth)), *own_rows(options.size_px)]
    for row in rows:
        print(f"{row['what']}: {results_file.value_text(row)}  {row['note']}")
    write("edgetpu-lint", "make bench-edgetpu-lint", [0], rows)


if __name__ == "__main__":
    main()
