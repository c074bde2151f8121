"""Recall by defect area as a picture, drawn from the rows of `quality.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality.report import BY_STRATUM

MEASURES = {"recall": "share called defective", "seg_recall": "Seg_Recall"}


def draw_recall_by_area(rows: list[dict[str, Any]], path: Path) -> bool:
    """Write an SVG with a group of bars for each quarter of the areas; False where no row says anything.

    The same rows give the same bytes, so that the file changes in git only when the numbers do.
    """
    by_id = {row["id"]: row for row in rows}
    quarters = sorted({row["id"].split(".")[2] for row in rows if ".recall.area-" in row["id"]})
    systems = [name for name in BY_STRATUM if quarters and f"{name}.recall.{quarters[0]}" in by_id]
    if not systems:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "edgeqc", "font.size": 9}):
        figure, axes = plt.subplots(1, len(MEASURES), figsize=(9, 3.2), sharey=True, layout="constrained")
        width = 0.8 / len(systems)
        for axis, (measure, title) in zip(axes, MEASURES.items()):
            for number, system in enumerate(systems):
                heights = [by_id[f"{system}.{measure}.{quarter}"]["value"] for quarter in quarters]
                places = [place + (number - (len(systems) - 1) / 2) * width for place in range(len(quarters))]
                axis.bar(places, heights, width, label=system)
            areas = [by_id[f"{systems[0]}.{measure}.{quarter}"]["what"] for quarter in quarters]
            names = [area.split(" of area ")[1].removesuffix(", `test`") for area in areas]
            axis.set_xticks(range(len(quarters)), names, fontsize=7)
            axis.set(title=title, xlabel="defect area, quarters of `test`", ylim=(0, 1.02))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(systems))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    return True
