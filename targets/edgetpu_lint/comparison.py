"""The prediction beside the compiler's log, where there is a compiler. The log is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from targets.edgetpu_compiler import CompilerLog
from targets.edgetpu_lint.graph import is_builtin
from targets.edgetpu_lint.report import Report


def differences(report: Report, log: CompilerLog) -> list[str]:
    """What the log says otherwise, one sentence for each kind of operation; empty where both agree.

    An `unknown` operation agrees with whatever became of it.
    """
    on_edgetpu, on_cpu, unknown = map(_logged, (report.on_edgetpu, report.on_cpu, report.unknown))
    found = []
    for name in sorted({*on_edgetpu, *on_cpu, *unknown, *log.mapped, *log.unmapped}):
        mapped = log.mapped.get(name, 0)
        reasons = log.unmapped.get(name, {})
        left = sum(reasons.values())
        certain = on_edgetpu[name], on_cpu[name]
        agree = certain[0] <= mapped and certain[1] <= left
        if not agree or mapped + left != sum(certain) + unknown[name]:
            predicted = f"predicted {certain[0]} on the Edge TPU, {certain[1]} on the CPU"
            doubt = f", {unknown[name]} unknown" if unknown[name] else ""
            why = f" ({'; '.join(sorted(reasons))})" if reasons else ""
            found.append(f"{name}: {predicted}{doubt}; the compiler maps {mapped} and leaves {left}{why}")
    return found


def _logged(counts: Mapping[str, int]) -> Counter[str]:
    """Counts under the log's names: it calls every custom operation CUSTOM."""
    logged: Counter[str] = Counter()
    for name, count in counts.items():
        logged[name if is_builtin(name) else "CUSTOM"] += count
    return logged
