"""`edgeqc VERB ...`: finds the verb among the entry points, runs it, turns errors into exit codes.

Exit codes: 0 done; 1 a defect of ours (traceback); 2 bad usage or input; 3 a check ran and failed; 4 needed
hardware or SDK is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edge.backend import entry_points
from edge.command import Command, Outcome
from edge.errors import EdgeError
from edge.folders import jsonable, write_json

COMMAND_GROUP = "edgeqc.commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; argparse's own usage errors leave as SystemExit(2)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    points = {point.name: point for point in entry_points(COMMAND_GROUP)}
    parser = argparse.ArgumentParser(
        prog="edgeqc", description="Defect inspection on edge devices without changing a verdict."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    # Only the verb that is called gets loaded, so a camera never pays for the training side.
    wanted = arguments[0] if arguments and arguments[0] in points else None
    commands: dict[str, Command] = {}
    for name, point in points.items():
        if wanted is not None and name != wanted:
            continue
        commands[name] = point.load()
        child = verbs.add_parser(name, help=commands[name].summary, description=commands[name].summary)
        commands[name].configure(child)
        child.add_argument(
            "--json",
            nargs="?",
            const="-",
            metavar="FILE",
            help="write the result as JSON (standard output by default)",
        )
    options = parser.parse_args(arguments)
    try:
        outcome = commands[options.verb].run(options)
        _present(outcome, options.json)
        return outcome.exit_code
    except EdgeError as error:
        print(f"edgeqc {options.verb}: {error}", file=sys.stderr)
        if options.json is not None:
            facts = {key: _text(getattr(error, key)) for key in ("what", "wanted", "got", "next_step")}
            report = {"error": {"kind": type(error).__name__, **facts}}
            if options.json == "-":  # a file is written whole or not at all
                print(json.dumps(report, indent=2))
        return error.exit_code


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _present(outcome: Outcome, target: str | None) -> None:
    if outcome.text:
        print(outcome.text, file=sys.stderr if target == "-" else sys.stdout)
    if target == "-":
        print(json.dumps(jsonable(outcome.data), indent=2, allow_nan=False, ensure_ascii=False))
    elif target is not None:
        write_json(Path(target), outcome.data)


def entry() -> None:
    """The console script. A closed pipe (`edgeqc run ... | head`) ends quietly."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    entry()
