"""`quality.json` as people read it: systems down, metrics across. Reads the rows' ids and nothing else."""

from __future__ import annotations

from typing import Any

from benchmarks.quality.report import METRICS, UNLEAKED_METRICS
from benchmarks.results_file import value_text

Row = dict[str, Any]

SYSTEM_COLUMNS = (*METRICS, "images_per_s", "minutes")
COLUMN_NAMES = {**METRICS, "images_per_s": "images/s", "minutes": "training"}
README_COLUMNS = ("ap", "auroc", "recall_equal_alarms", "seg_miou", "seg_recall", "positive_iou")
DIFFERENCES = (
    "ap",
    "auroc",
    "recall_equal_alarms",
    "f1",
    "seg_miou",
    "seg_recall",
    "positive_iou",
    "miou",
    "mpa",
)
PASSED = {True: "yes", False: "**no**", None: ""}


def quality_section(rows: list[Row]) -> str:
    """The comparison, the differences, the strata and the bars, as Markdown."""
    parts = [
        "### Systems\n",
        "On `test`, mean over seeds. Recall at equal false alarms is read off each ROC at the number of false alarms "
        "that the baseline of the same seed gives at its own threshold. IoU on positives is the mean over defective "
        "photographs with a mask, whatever the verdict.\n",
        systems_table(rows, SYSTEM_COLUMNS),
        "\n### Differences\n",
        "Bootstrap paired over the parts of `test` and over seeds, 2,000 draws, 95 % interval.\n",
        differences_table(rows),
        *_val(rows),
        *_unleaked(rows),
        "\n### By defect\n",
        "Share called defective / Seg_Recall on `test`, mean over seeds; area in pixels of the photograph.\n",
        strata_table(rows),
        *(
            ["\n![recall by defect area](pictures/quality-recall-by-area.svg)"]
            if _any(rows, ".recall.area-1")
            else []
        ),
        "\n### Bars\n",
        bars_table(rows),
    ]
    return "\n".join(parts)


def _val(rows: list[Row]) -> list[str]:
    columns = tuple(f"val_{name}" for name in METRICS if _any(rows, f".val_{name}"))
    return ["\n### On `val`, which recipes are chosen by\n", systems_table(rows, columns)] if columns else []


def _unleaked(rows: list[Row]) -> list[str]:
    if not _any(rows, ".unleaked_ap"):
        return []
    left_out = next(row["note"].split("without ")[1] for row in rows if row["id"].endswith(".unleaked_ap"))
    return [
        "\n### On `test` without leaks\n",
        f"`edgeqc data check` finds parts of `test` in other splits; without {left_out}.\n",
        systems_table(rows, tuple(f"unleaked_{name}" for name in UNLEAKED_METRICS)),
    ]


def quality_readme(rows: list[Row]) -> str:
    """The README's view: the systems and the metrics that have bars."""
    return systems_table(rows, README_COLUMNS)


def systems_table(rows: list[Row], columns: tuple[str, ...]) -> str:
    """A line for each system; one that was not run says so."""
    by_id = {row["id"]: row for row in rows}
    names = [
        COLUMN_NAMES.get(column.removeprefix("val_").removeprefix("unleaked_"), column) for column in columns
    ]
    lines = []
    for system, runs in _systems(rows):
        cells = [value_text(by_id[id]) if (id := f"{system}.{column}") in by_id else "" for column in columns]
        if runs["value"] is None:
            cells = ["not run"] + [""] * (len(columns) - 1)
        lines.append([f"`{system}`", value_text(runs), *cells])
    return _markdown(["system", "seeds", *names], lines)


def differences_table(rows: list[Row]) -> str:
    """A line for each pair of systems; the interval, and whether it tells them apart, in each cell."""
    by_id = {row["id"]: row for row in rows}
    pairs = dict.fromkeys(
        (row["id"].split(".")[0], row["id"].split(".minus.")[1])
        for row in rows
        if ".minus." in row["id"] and row["value"] is not None
    )
    lines = []
    for system, reference in pairs:
        found = [by_id.get(f"{system}.{metric}.minus.{reference}") for metric in DIFFERENCES]
        cells = [f"{row['value']:+.3f} ({row['note'].removeprefix('95 % ')})" if row else "" for row in found]
        lines.append([f"`{system}`", f"`{reference}`", *cells])
    if not lines:
        return "not run"
    return _markdown(["system", "minus", *(METRICS[name] for name in DIFFERENCES)], lines)


def strata_table(rows: list[Row]) -> str:
    """A line for each defect type and each quarter of the areas, with how many photographs it has."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        system, _, rest = row["id"].partition(".")
        metric, _, stratum = rest.partition(".")
        if metric in ("recall", "seg_recall") and stratum.startswith(("type-", "area-")):
            found.setdefault(stratum, {}).setdefault(system, []).append(row)
    if not found:
        return "not run"
    systems = list(dict.fromkeys(system for of in found.values() for system in of))
    lines = []
    for of in found.values():
        first = next(iter(of.values()))[0]
        name = first["what"].split(" of ", 1)[1].removesuffix(", `test`")
        cells = [" / ".join(value_text(row) for row in of.get(system, [])) for system in systems]
        lines.append([name, first["note"].split(" ")[0], *cells])
    return _markdown(["defect", "photographs", *(f"`{system}`" for system in systems)], lines)


def bars_table(rows: list[Row]) -> str:
    """Every row that has a bar to pass."""
    return _markdown(
        ["what", "value", "bar", "passed", "note"],
        [
            [row["what"], value_text(row), row["bar"], PASSED[row["passed"]], row["note"]]
            for row in rows
            if row["bar"] is not None
        ],
    )


def _systems(rows: list[Row]) -> list[tuple[str, Row]]:
    return [(row["id"].removesuffix(".runs"), row) for row in rows if row["id"].endswith(".runs")]


def _any(rows: list[Row], ending: str) -> bool:
    return any(row["id"].endswith(ending) for row in rows)


def _markdown(head: list[str], lines: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, lines)])
