"""The rows of `quality.json`: values, differences with their intervals, recall by kind of defect, bars.

Ids are read back by `benchmarks.quality.tables`: `SYSTEM.METRIC`, `SYSTEM.METRIC.minus.REFERENCE`,
`SYSTEM.METRIC.over.REFERENCE`, `SYSTEM.recall.STRATUM`, `SYSTEM.runs`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import results_file
from benchmarks.quality.analysis import Analysis, Records, analyse
from benchmarks.quality.runs import Record
from benchmarks.quality.strata import Stratum, area_quartiles, defect_types, recalls
from benchmarks.quality.systems import BASELINE, DEFAULT, PLAIN_CAM, SEEDS, SPEED, System

Row = dict[str, Any]

METRICS = {
    "ap": "AP",
    "auroc": "AUROC",
    "recall_equal_alarms": "recall at equal false alarms",
    "recall": "recall",
    "f1": "F1",
    "misses": "misses",
    "false_alarms": "false alarms",
    "seg_miou": "Seg_mIoU",
    "seg_recall": "Seg_Recall",
    "positive_iou": "IoU on positives",
    "miou": "mIoU",
    "mpa": "mPA",
}
# What a recipe is chosen by; `test` is for the verdict on it.
VAL_METRICS = ("ap", "seg_miou", "seg_recall", "positive_iou")
UNLEAKED_METRICS = ("ap", "auroc", "recall", "false_alarms", "seg_miou", "seg_recall", "positive_iou")
SPEEDS = {
    "images_per_s": "training, images/s",
    "data_share": "share of the time spent waiting for data",
    "minutes": "training",
}

# (system, metric) -> at least this, mean over seeds.
AT_LEAST = {
    (DEFAULT, "ap"): 0.96,
    (DEFAULT, "auroc"): 0.97,
    (DEFAULT, "positive_iou"): 0.55,
    ("weak", "ap"): 0.90,
}
# (system, reference, metric) -> the difference must be at least this, and its interval above 0.
ABOVE = {
    (DEFAULT, BASELINE, "ap"): 0.0,
    (DEFAULT, BASELINE, "recall_equal_alarms"): 0.0,
    (DEFAULT, BASELINE, "seg_miou"): 0.0,
    (DEFAULT, BASELINE, "seg_recall"): 0.0,
    ("pixel-confidence", BASELINE, "miou"): 0.0144,
    ("pixel-confidence", BASELINE, "mpa"): 0.0266,
}
# (system, reference, metric) -> the ratio of the means must be at least this.
TIMES = {("weak", PLAIN_CAM, "positive_iou"): 1.5, ("weak", DEFAULT, "positive_iou"): 0.6}
SPEED_BAR_IMAGES_PER_S = 80.0
SPEED_BAR_THREADS = 2
DATA_SHARE_BAR = 0.05
BY_STRATUM = (BASELINE, DEFAULT, "pixel-confidence")
UNDEFINED = "undefined"


def rows(
    systems: Sequence[System],
    records: Records,
    speed: Record | None,
    profile: Mapping[str, Any] | None,
    leaked: Sequence[str] = (),
) -> list[Row]:
    """All rows. `speed` is the run that was made alone for the bar on speed, `profile` where its time goes.

    `leaked` are the groups of `test` whose part is in another split too.
    """
    test, val = analyse(records, "test"), analyse(records, "val")
    made: list[Row] = []
    for system in systems:
        runs = records.get(system.id, {})
        made.append(_runs_row(system, records))
        made += [_value_row(test, system, metric) for metric in _asked(system, bool(runs))]
        if runs:
            made += [_value_row(val, system, metric) for metric in VAL_METRICS]
            made += _speed_rows(system, runs)
    for system in systems:
        made += _comparison_rows(test, system)
    if leaked:
        made += _unleaked_rows(systems, records, leaked)
    made += _stratum_rows(records)
    made += _speed_bars(speed)
    made += _profile_rows(profile)
    return made


def _asked(system: System, was_run: bool) -> list[str]:
    """Every metric of a system that was run; of one that was not, those with a bar."""
    return [metric for metric in METRICS if was_run or (system.id, metric) in AT_LEAST]


def _value_row(analysis: Analysis, system: System, metric: str) -> Row:
    found = analysis.of_seeds(system.id, metric)
    bar = AT_LEAST.get((system.id, metric)) if analysis.split == "test" else None
    value = statistics.fmean(found.values()) if found else None
    passed = None if bar is None or value is None else value >= bar
    prefix = "" if analysis.split == "test" else f"{analysis.split}_"
    what = f"{system.what}: {METRICS[metric]}, `{analysis.split}`"
    if not found and analysis.seeds(system.id):
        value = UNDEFINED
    text = None if bar is None else f">= {bar:g}"
    return results_file.row(
        f"{system.id}.{prefix}{metric}", what, value, bar=text, passed=passed, note=_spread(found)
    )


def _unleaked_rows(systems: Sequence[System], records: Records, leaked: Sequence[str]) -> Iterator[Row]:
    clean = analyse(records, "test", draws=0, without=leaked)
    for system in systems:
        for metric in UNLEAKED_METRICS:
            if found := clean.of_seeds(system.id, metric):
                yield results_file.row(
                    f"{system.id}.unleaked_{metric}",
                    f"{system.what}: {METRICS[metric]}, `test` without the parts that are in another split too",
                    statistics.fmean(found.values()),
                    note=f"{_spread(found)}; without groups {', '.join(leaked)}",
                )


def _spread(found: dict[int, float]) -> str:
    """Which seeds, and how far they are apart."""
    if not found:
        return "not run"
    said = _seeds(tuple(found))
    if len(found) == 1:
        return said
    return f"sd {statistics.stdev(found.values()):.3g}, {said}"


def _seeds(seeds: Sequence[int]) -> str:
    listed = ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
    return listed if len(seeds) >= len(SEEDS) else f"{listed} only"


def _comparison_rows(analysis: Analysis, system: System) -> Iterator[Row]:
    for reference in system.compared_with:
        for metric in METRICS:
            for of_kind in (_difference_row, _ratio_row):
                row = of_kind(analysis, system, reference, metric)
                if row is not None:
                    yield row


def _difference_row(analysis: Analysis, system: System, reference: str, metric: str) -> Row | None:
    bar = ABOVE.get((system.id, reference, metric))
    text = None if bar is None else (f">= +{bar:g} ({100 * bar:g} points)" if bar else "> 0")
    id = f"{system.id}.{metric}.minus.{reference}"
    what = f"{system.what}: {METRICS[metric]} minus that of {reference}, `{analysis.split}`"
    found = analysis.difference(system.id, reference, metric)
    if found is None:
        return None if bar is None else results_file.row(id, what, None, bar=text, note="not run")
    note = f"95 % {found.low:+.3f} to {found.high:+.3f}"
    if not found.distinguishable:
        note += ", not distinguishable"
    if len(found.seeds) < len(SEEDS):
        note += f", {_seeds(found.seeds)}"
    passed = None if bar is None else found.low > 0 and found.value >= bar
    return results_file.row(id, what, found.value, bar=text, passed=passed, note=note)


def _ratio_row(analysis: Analysis, system: System, reference: str, metric: str) -> Row | None:
    bar = TIMES.get((system.id, reference, metric))
    if bar is None:
        return None
    id = f"{system.id}.{metric}.over.{reference}"
    what = f"{system.what}: {METRICS[metric]} over that of {reference}, `{analysis.split}`"
    ours, theirs = (analysis.of_seeds(name, metric) for name in (system.id, reference))
    if not ours or not theirs:
        return results_file.row(id, what, None, bar=f">= {bar:g}", note="not run")
    above, below = statistics.fmean(ours.values()), statistics.fmean(theirs.values())
    ratio = above / below if below else UNDEFINED
    passed = above >= bar * below
    return results_file.row(
        id,
        what,
        ratio,
        "times",
        f">= {bar:g}",
        passed,
        f"{above:.3f} over {below:.3f}, {_seeds(tuple(ours))}",
    )


def _runs_row(system: System, records: Records) -> Row:
    """How many seeds were run, and everything that somebody who doubts the numbers asks first."""
    what = f"{system.what}: seeds run"
    runs = records.get(system.id, {})
    id = f"{system.id}.runs"
    if not runs:
        return results_file.row(id, what, None, note="not run")
    first = runs[min(runs)]
    notes = [f"`{' '.join(system.words) or 'no flag'}`", _seeds(sorted(runs)), _epochs(runs.values())]
    notes.append("commit " + ", ".join(dict.fromkeys(c for run in runs.values() for c in run.commits)))
    if any(run.stale for run in runs.values()):
        notes.append("the training code has changed since")
    if any(run.recipe() != first.recipe() for run in runs.values()):
        notes.append("the seeds were not trained alike")
    if system.id != BASELINE and (baseline := records.get(BASELINE)):
        other = _recipe_differences(first, baseline[min(baseline)])
        notes.append("differs from the baseline in " + (", ".join(other) or "nothing"))
    notes.append(results_file.pretrained(first.facts["training"]))
    ran_on = first.facts["training"].get("ran_on", {})
    notes.append(", ".join(f"{key} {value}" for key, value in ran_on.items()))
    return results_file.row(id, what, len(runs), note="; ".join(filter(None, notes)))


def _epochs(runs: Any) -> str:
    done = sorted({str(run.facts["training"].get("epochs_done", "?")) for run in runs})
    return f"{' or '.join(done)} epochs"


def _recipe_differences(one: Record, other: Record) -> list[str]:
    ours, theirs = one.recipe(), other.recipe()
    names = ours.keys() | theirs.keys()
    return sorted(name.removeprefix("training.") for name in names if ours.get(name) != theirs.get(name))


def _speed_rows(system: System, runs: Any) -> Iterator[Row]:
    for name, what in SPEEDS.items():
        found = [run.speed[name] for run in runs.values() if run.speed.get(name) is not None]
        if found:
            starts = [run.facts["starts"][-1] for run in runs.values()]
            beside = max(start["jobs"] for start in starts)
            threads = ", ".join(str(t) for t in sorted({start["threads"] for start in starts}))
            note = f"{beside} trainings side by side, {threads} threads each"
            yield results_file.row(
                f"{system.id}.{name}",
                f"{system.what}: {what}",
                statistics.median(found),
                "min" if name == "minutes" else "",
                note=note,
            )


def _stratum_rows(records: Records) -> Iterator[Row]:
    tables = {
        id: [run.tables["test"] for run in records[id].values()] for id in BY_STRATUM if records.get(id)
    }
    if not tables:
        return
    first = next(iter(tables.values()))[0]  # which photographs is the same for every run
    for stratum in [*defect_types(first), *area_quartiles(first)]:
        for system, runs in tables.items():
            yield from _recall_rows(system, runs, stratum)


def _recall_rows(system: str, runs: list[Any], stratum: Stratum) -> Iterator[Row]:
    found = np.array([recalls(table, stratum) for table in runs])
    asked = int(stratum.chosen.sum()), int((stratum.chosen & runs[0].masked).sum())
    for name, column, count in zip(("recall", "seg_recall"), found.T, asked):
        yield results_file.row(
            f"{system}.{name}.{stratum.key}",
            f"{system}: {METRICS[name]} of {stratum.what}, `test`",
            float(column.mean()) if count else UNDEFINED,
            note=f"{count} photographs, {len(runs)} seed{'s' if len(runs) > 1 else ''}",
        )


def _speed_bars(record: Record | None) -> Iterator[Row]:
    """The bar names two cores: elsewhere the number is reported and not judged."""
    checks: tuple[tuple[str, str, str, Callable[[float], bool]], ...] = (
        ("images_per_s", "images/s", f">= {SPEED_BAR_IMAGES_PER_S:g}", lambda v: v >= SPEED_BAR_IMAGES_PER_S),
        ("data_share", "", f"< {DATA_SHARE_BAR:g}", lambda v: v < DATA_SHARE_BAR),
    )
    for name, unit, bar, holds in checks:
        what = f"{SPEED.what}, alone on the machine: {SPEEDS[name]}"
        value = record.speed.get(name) if record else None
        if record is None or value is None:
            yield results_file.row(f"speed.{name}", what, None, unit, bar, note="not run")
            continue
        start, ran_on = record.facts["starts"][-1], record.facts["training"].get("ran_on", {})
        judged = (
            ran_on.get("device") == "cpu" and start["threads"] == SPEED_BAR_THREADS and start["jobs"] == 1
        )
        note = f"{ran_on.get('device')}, {start['threads']} threads, commit {', '.join(record.commits)}"
        if not judged:
            note += "; the bar is for two cores"
        yield results_file.row(
            f"speed.{name}", what, value, unit, bar, holds(value) if judged else None, note
        )


def _profile_rows(profile: Mapping[str, Any] | None) -> Iterator[Row]:
    """Why training is not faster, and what would make it so."""
    if profile is None:
        return
    note = f"{profile['threads']} threads, random images, commit {profile['commit']}"
    for name, value in profile["images_per_s"].items():
        key = name.replace(" ", "-")
        yield results_file.row(f"profile.{key}", f"one training step, {name}: images/s", value, note=note)
    for kind, share in profile["shares"].items():
        key = kind.replace(",", "").replace(" ", "-")
        yield results_file.row(
            f"profile.{key}", f"one training step: share of the time in {kind}", share, note=note
        )
