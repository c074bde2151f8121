"""Trains what a plan says, predicts with it, and keeps one record: whatever is there already is not made again.

    WORK/runs/LABEL/        start.json (when, at which commit), run/, test.npz, val.npz, log.txt
    WORK/made/LABEL.json    the record: settings, commits, speed, the answers on `val` and `test`

The records are all that the analysis reads: a run made on another machine counts once its record is here.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import results_file, verbs
from benchmarks.quality.sample_table import SampleTable, read_table, tabulate
from benchmarks.quality.systems import Plan
from edge.folders import write_json
from edge.predictions import Predictions
from edge.samples import read_samples
from quantize.decision import choose_threshold

SPLITS = ("val", "test")
# The code that decides what a training gives, as git pathspecs.
SOURCES = (
    "quantize/models",
    "quantize/training",
    "quantize/data/framed.py",
    "quantize/data/sizing.py",
    "quantize/pretrained.py",
    "edge/preprocess.py",
    "edge/images.py",
)
# What run.json says about one training rather than about its recipe.
OF_ONE_RUN = {"seed", "epochs_done", "best_epoch", "seconds", "ran_on"}


class RunError(Exception):
    """A verb did not do its work, or somebody else is doing it."""


@dataclass(frozen=True, eq=False)
class Record:
    """A run that was made."""

    label: str
    seed: int
    facts: dict[str, Any] = field(repr=False)
    tables: dict[str, SampleTable] = field(repr=False)

    @property
    def commits(self) -> list[str]:
        """Where the code stood at each start of the training; several where it was resumed."""
        return list(dict.fromkeys(start["commit"] for start in self.facts["starts"]))

    @property
    def stale(self) -> bool:
        """Whether the code that trains has changed since; a tree that was not clean counts as another one."""
        return any(training_code_differs(commit) for commit in self.commits)

    @property
    def speed(self) -> dict[str, float | None]:
        """`images_per_s`, `data_share`, `minutes`; None where the training did not report it."""
        return dict(self.facts["speed"])

    def recipe(self) -> dict[str, Any]:
        """Every setting of the training but the seed, flat."""
        training = {key: value for key, value in self.facts["training"].items() if key not in OF_ONE_RUN}
        training["pretrained"] = results_file.pretrained(training)
        settings = {key: self.facts[key] for key in ("model", "input", "framing")}
        return dict(_flat({**settings, "training": training}))


@dataclass(frozen=True)
class RunStore:
    """The runs in a work folder.

    `pretrained` is where `edgeqc train` finds encoders, None where it looks by itself. `verb` runs `edgeqc`.
    """

    work: Path
    data: Path
    threads: int
    jobs: int = 1
    pretrained: Path | None = None
    verb: Callable[..., int] = verbs.edgeqc

    def made(self, plan: Plan) -> Record | None:
        """The record of this plan, or None; with the verdicts of today's default rule on its `val`.

        So every row is decided by one rule, also where the rule was improved after the training.
        """
        file = self.work / "made" / f"{plan.label}.json"
        if not file.is_file():
            return None
        facts = json.loads(file.read_text(encoding="utf-8"))
        tables = {split: read_table(facts["tables"][split]) for split in SPLITS}
        threshold = choose_threshold(tables["val"].defective, tables["val"].score).threshold
        tables = {split: replace(table, verdict=table.score >= threshold) for split, table in tables.items()}
        return Record(plan.label, plan.seed, facts, tables)

    def make(self, plan: Plan) -> Record:
        """Train, predict and record, or go on where an earlier call was interrupted.

        Raises:
            RunError: a verb failed, or another process is at this run.
        """
        folder = self.work / "runs" / plan.label
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder) as lock:
            if (earlier := self.made(plan)) is not None:
                return earlier
            run = folder / "run"
            if not plan.system.made_by_train:
                self._adopt(plan, folder)
            elif not run.exists():  # it appears by one rename when the training is done
                self._note_start(folder)
                places = ["--data", self.data, "--out", run]
                if self.pretrained is not None:  # named, so that its absence is an error and not another row
                    places += ["--pretrained", self.pretrained]
                self._run(folder, lock, "train", *places, *plan.words)
            for split in SPLITS:
                answers = folder / f"{split}.npz"
                if not answers.is_file():
                    words = ("--data", self.data, "--split", split, "--out", answers)
                    self._run(folder, lock, "predict", run, *words)
            self._record(plan, folder)
        made = self.made(plan)
        assert made is not None
        return made

    def _adopt(self, plan: Plan, folder: Path) -> None:
        """Take what another program left in `folder`: run/ with its two JSON files, and the predictions."""
        wanted = ["run/run.json", "run/metrics.json", *(f"{split}.npz" for split in SPLITS)]
        if absent := [name for name in wanted if not (folder / name).is_file()]:
            raise RunError(f"no verb makes {plan.system.id}: {folder} lacks {', '.join(absent)}")
        if not (folder / "start.json").is_file():
            self._note_start(folder)

    def _run(self, folder: Path, lock: int, *words: object) -> None:
        log = folder / "log.txt"
        # The process keeps the lock: should this one be killed, nobody trains into the same folder meanwhile.
        code = self.verb(*words, threads=self.threads, log=log, keep_open=[lock])
        if code != 0:
            raise RunError(f"edgeqc {words[0]} ended with exit code {code}; see {log}")

    def _note_start(self, folder: Path) -> None:
        file = folder / "start.json"
        starts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        start = {"commit": training_commit(), "date": now}
        write_json(file, [*starts, {**start, "threads": self.threads, "jobs": self.jobs}])

    def _record(self, plan: Plan, folder: Path) -> None:
        run = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))
        tables = {
            split: tabulate(Predictions.load(folder / f"{split}.npz"), read_samples(self.data, split))
            for split in SPLITS
        }
        record = {
            "label": plan.label,
            "words": plan.words,
            "starts": json.loads((folder / "start.json").read_text(encoding="utf-8")),
            **{key: run[key] for key in ("model", "input", "framing", "decision", "training", "created")},
            "speed": _speed(metrics.get("history") or [], run["training"]),
            "tables": {split: table.as_dict() for split, table in tables.items()},
        }
        write_json(self.work / "made" / f"{plan.label}.json", record)


def training_commit() -> str:
    """The commit that is checked out, marked `-dirty` where the code that trains differs from it."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(words, cwd=results_file.ROOT, capture_output=True, text=True, check=False)
    head = found.stdout.strip()
    return f"{head}{'-dirty' if training_code_differs(head) else ''}" if head else "not a git checkout"


def training_code_differs(commit: str) -> bool:
    """Whether the code that trains is another one than at ``commit``, or nobody can say."""
    words = ["git", "diff", "--quiet", commit, "--", *SOURCES]
    return subprocess.run(words, cwd=results_file.ROOT, capture_output=True, check=False).returncode != 0


def _speed(history: list[dict[str, float]], training: dict[str, Any]) -> dict[str, float | None]:
    """The median of the epochs but the first, which warms up; the share spent waiting is that of all of them."""
    timed = [epoch for epoch in history if epoch.get("images_per_s") and epoch.get("data_share") is not None]
    rates = [epoch["images_per_s"] for epoch in timed]
    # Every epoch has the same number of images.
    spent = sum(1 / epoch["images_per_s"] for epoch in timed)
    waited = sum(epoch["data_share"] / epoch["images_per_s"] for epoch in timed)
    seconds = training.get("seconds")
    return {
        "minutes": None if seconds is None else seconds / 60,
        "images_per_s": statistics.median(rates[1:] or rates) if rates else None,
        "data_share": waited / spent if spent else None,
    }


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; the system frees it when the last process that has it open is gone."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process is at {folder}") from error
        yield lock
    finally:
        os.close(lock)


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
