"""A verb of `edgeqc`, run in a process of its own as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# What the numeric libraries read their number of threads from.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def edgeqc(
    *words: object, threads: int | None = None, log: Path | None = None, keep_open: Sequence[int] = ()
) -> int:
    """Run `edgeqc WORDS` with the interpreter that runs this, and return its exit code.

    With `threads`, the numeric libraries get that many; with `log`, both outputs are appended to that file.
    The process inherits the file descriptors in `keep_open`.
    """
    command = [str(Path(sys.executable).with_name("edgeqc")), *map(str, words)]
    environment = dict(os.environ)
    if threads is not None:
        environment.update(dict.fromkeys(THREADS, str(threads)))
    said = "$ edgeqc " + " ".join(map(str, words))
    if log is None:
        print(said, flush=True)
        return subprocess.run(command, env=environment, pass_fds=keep_open, check=False).returncode
    with log.open("a", encoding="utf-8") as stream:
        print(said, file=stream, flush=True)
        return subprocess.run(
            command, env=environment, pass_fds=keep_open, stdout=stream, stderr=stream, check=False
        ).returncode
