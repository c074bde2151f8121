"""`make bench-quality`: train every row with every seed, measure, and write benchmarks/results/quality.json.

Resumes: what was made is not made again, and a training that was killed goes on after its last epoch. A part of
the table can be made at a time (--rows, --seeds); what is missing says `not run`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from benchmarks import results_file, verbs
from benchmarks.quality.leaks import leaked_groups
from benchmarks.quality.report import rows
from benchmarks.quality.runs import Record, RunError, RunStore
from benchmarks.quality.systems import EPOCHS, SEEDS, SPEED, Plan, System, default_systems
from edge.folders import write_json

PROFILE = Path("made") / "profile.json"
PRETRAINED = Path("../shared/pretrained")


def main(words: Sequence[str] | None = None, verb: Callable[..., int] = verbs.edgeqc) -> int:
    """Do what the command line says; `verb` runs `edgeqc`. Exit code 1: a run could not be made."""
    table = default_systems()
    options = _options(table, words)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // options.jobs)
    store = RunStore(options.work, options.data, threads, options.jobs, options.pretrained, verb)
    every = [Plan(system, seed, system.epochs or options.epochs) for seed in SEEDS for system in table]
    asked = [plan for plan in every if plan.system.id in options.rows and plan.seed in options.seeds]
    alone = Plan(SPEED, SEEDS[0], SPEED.epochs or options.epochs)
    failures = [] if options.only_report else make_all(store, asked)
    if SPEED.id in options.rows and not options.only_report:
        failures += make_all(replace(store, threads=cores, jobs=1), [alone])
        make_profile(options.work / PROFILE, cores)
    records: dict[str, dict[int, Record]] = {system.id: {} for system in table}
    for plan in every:
        if (record := store.made(plan)) is not None:
            records[plan.system.id][plan.seed] = record
    for record in (record for runs in records.values() for record in runs.values()):
        if record.stale:
            print(
                f"{record.label} was trained with other code, at {', '.join(record.commits)}; it counts."
                f" To train it again, remove made/{record.label}.json and runs/{record.label} in {options.work}"
            )
    seeds = sorted({seed for runs in records.values() for seed in runs})
    command = "make bench-quality"
    if options.epochs != EPOCHS:
        command += f" QUALITY='--epochs {options.epochs}'"
    leaked = leaked_groups(options.data, options.work / "made" / "leaks.json")
    file = options.work / PROFILE
    profile = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    print(
        results_file.write(
            "quality", command, seeds, rows(table, records, store.made(alone), profile, leaked)
        )
    )
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def make_profile(file: Path, threads: int) -> None:
    """Profile a training step in a process of its own, unless that was done."""
    if file.is_file():
        return
    print("profiling a training step", flush=True)
    words = [sys.executable, "-m", "benchmarks.quality.profile", "--threads", str(threads)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**found, "threads": threads, "commit": results_file.commit()})


def make_all(store: RunStore, plans: Sequence[Plan]) -> list[str]:
    """Make the runs, `store.jobs` side by side, and return what went wrong; the others are made all the same."""
    failures: list[str] = []
    missing = [plan for plan in plans if store.made(plan) is None]
    print(f"{len(plans) - len(missing)} of {len(plans)} runs are there, {len(missing)} to make", flush=True)
    with ThreadPoolExecutor(store.jobs) as pool:
        running = {pool.submit(_make, store, plan): plan.label for plan in missing}
        try:
            for number, future in enumerate(as_completed(running), 1):
                said = "is made"
                if isinstance(error := future.exception(), RunError):
                    said = f"failed: {error}"
                    failures.append(f"{running[future]}: {error}")
                elif error is not None:
                    raise error
                print(f"{number}/{len(missing)} {running[future]} {said}", flush=True)
        except BaseException:  # Ctrl-C reaches the verbs too: what waits must not start in their place
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures


def _make(store: RunStore, plan: Plan) -> None:
    how = f"edgeqc train {' '.join(plan.words)}" if plan.system.made_by_train else "looking for its files"
    print(f"{plan.label}: {how}, {store.threads} threads", flush=True)
    store.make(plan)


def _options(table: Sequence[System], words: Sequence[str] | None) -> argparse.Namespace:
    ids = [*(system.id for system in table), SPEED.id]
    made_here = [*(system.id for system in table if system.made_by_train), SPEED.id]

    def rows_named(text: str) -> list[str]:
        named = text.split(",")
        if unknown := [name for name in named if name not in ids]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: wanted some of {', '.join(ids)}")
        return named

    def seeds_named(text: str) -> list[int]:
        named = text.split(",")
        if any(name not in map(str, SEEDS) for name in named):
            raise argparse.ArgumentTypeError(f"{text}: wanted some of {', '.join(map(str, SEEDS))}")
        return [int(name) for name in named]

    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/datasets/mtd"))
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    shared = None if os.environ.get("EDGEQC_PRETRAINED") or not PRETRAINED.is_dir() else PRETRAINED
    parser.add_argument(
        "--pretrained",
        type=Path,
        default=shared,
        help=f"encoders, file or folder (default: EDGEQC_PRETRAINED, {PRETRAINED}, where train looks)",
    )
    parser.add_argument("--rows", type=rows_named, default=made_here, help=f"some of {','.join(ids)}")
    parser.add_argument("--seeds", type=seeds_named, default=list(SEEDS), help="some of 0,1,2")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every row (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side (default: %(default)s)")
    parser.add_argument("--only-report", action="store_true", help="train nothing, write what is there")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
