"""What a verb of the command line is. Verbs register through the entry-point group `edgeqc.commands`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DONE = 0
DEFECT = 1
BAD_INPUT = 2
CHECK_FAILED = 3
MISSING = 4


@dataclass(frozen=True)
class Outcome:
    """What a verb hands back.

    Attributes:
        text: for people, on standard output (standard error when JSON is printed there).
        data: for programs, written by `--json`.
        exit_code: 0 done, 3 a check ran and failed; errors carry their own code.
    """

    text: str = ""
    data: Any = None
    exit_code: int = DONE


@dataclass(frozen=True)
class Command:
    """A verb.

    Attributes:
        summary: one line for `edgeqc --help`.
        configure: adds arguments; positional ones first, `--json [FILE]` is added by the command line.
        run: does it; raises `EdgeError` for what the user can act on.
    """

    summary: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], Outcome]
