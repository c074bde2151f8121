"""Google's Edge TPU compiler: closed, x86-64 Linux only; used where it is installed, never assumed."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from targets.errors import CompilerError

PROGRAM = "edgetpu_compiler"
TIMEOUT_S = 600
MAPPED = "Mapped to Edge TPU"
_VERSION = re.compile(r"^Edge TPU Compiler version (\S+)", re.MULTILINE)
# A row: operation, count, and the compiler's words for what became of it.
_ROW = re.compile(r"^([A-Za-z_0-9]+)\s{2,}(\d+)\s{2,}(\S.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class CompilerLog:
    """What became of each operation.

    Attributes:
        mapped: operation -> count on the Edge TPU.
        unmapped: operation -> the compiler's reasons -> count on the CPU.
    """

    version: str
    mapped: dict[str, int] = field(default_factory=dict)
    unmapped: dict[str, dict[str, int]] = field(default_factory=dict)


def parse_log(text: str) -> CompilerLog:
    """Read the table that the compiler prints or writes to `NAME_edgetpu.log`.

    Raises:
        CompilerError: it is not such a log.
    """
    version = _VERSION.search(text)
    rows = _ROW.findall(text)
    if version is None or not rows:
        raise CompilerError("this is no log of the Edge TPU compiler", got=text[:200] or "nothing")
    log = CompilerLog(version[1])
    for operation, count, status in rows:
        if status == MAPPED:
            log.mapped[operation] = log.mapped.get(operation, 0) + int(count)
        else:
            reasons = log.unmapped.setdefault(operation, {})
            reasons[status] = reasons.get(status, 0) + int(count)
    return log


def find() -> str | None:
    """The compiler's path, or None."""
    return shutil.which(PROGRAM)


def compile_model(path: Path, program: str) -> tuple[Path, CompilerLog]:
    """Compile `path` beside itself.

    Returns:
        `NAME_edgetpu.tflite` and the parsed log.

    Raises:
        CompilerError: it failed, ran too long, or wrote no file.
    """
    command = [program, "--show_operations", "--out_dir", str(path.parent), str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CompilerError("the Edge TPU compiler did not finish", got=exc) from exc
    compiled = path.with_name(f"{path.stem}_edgetpu.tflite")
    if done.returncode != 0 or not compiled.is_file():
        raise CompilerError(
            f"the Edge TPU compiler refuses {path}",
            got=(done.stderr or done.stdout).strip()[-1000:] or f"exit code {done.returncode}",
        )
    written = compiled.with_suffix(".log")
    text = (
        done.stdout if _ROW.search(done.stdout) else written.read_text() if written.is_file() else done.stdout
    )
    written.unlink(missing_ok=True)
    return compiled, parse_log(text)
