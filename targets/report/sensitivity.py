"""The ranking of layers for people: a table for a terminal, a picture, and what the report shows of both."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import InputError
from targets.report.charts import GRID, INK, QUIET, STYLE, svg_bytes
from targets.report.text import number

if TYPE_CHECKING:
    from quantize.mixed import MixedPlan
    from quantize.sensitivity import Sensitivities, Sensitivity

SHOWN = 15
# In the folder that `edgeqc sensitivity --out` writes.
NUMBERS, PICTURE = "sensitivity.json", "sensitivity.svg"
ACTIVATION, WEIGHTS = "#0b6fb8", "#c26a00"


def table(found: Sensitivities, plan: MixedPlan) -> str:
    """The worst layers, all layers together, and what precision `mixed` leaves in float (marked *)."""
    cells = [
        (
            "layer", "damage", "mask change", "by its output", "by its weights", "verdict change", "flips",
            "masks agree", "SQNR", "of MACs",
        )
    ]  # fmt: skip
    for row in found.rows[:SHOWN]:
        cells.append(
            (
                row.layer.name + (" *" if row.layer.name in plan.layers else ""),
                f"{row.damage:.1%}", number(row.whole.mask_rms), number(row.activation.mask_rms),
                number(row.weights.mask_rms), number(row.whole.defect_rms), str(row.whole.flips),
                number(row.whole.mask_agreement), _decibel(row), f"{row.mac_share:.2%}",
            )
        )  # fmt: skip
    all_of_it = found.together
    cells.append(
        (
            "all layers together", "", number(all_of_it.mask_rms), "", "", number(all_of_it.defect_rms),
            str(all_of_it.flips), number(all_of_it.mask_agreement), "", "",
        )
    )  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [
        "",
        f"measured on {found.count} photographs of split train that set no range, {found.positives} of them defective"
        " for full precision; changes are root mean squares in logits",
        f"* float at precision mixed, {len(plan.layers)} layers in all: {plan.damage_removed:.0%} of the damage for"
        f" {1 - plan.int8_mac_share:.1%} of the multiply-accumulates",
    ]
    return "\n".join(lines)


def bars(found: Sensitivities, plan: MixedPlan) -> bytes:
    """SVG: the worst layers' changes of the mask and the verdict, by weights and by output, and their SQNR beside."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = found.rows[:SHOWN]
    places = range(len(rows))
    with rc_context(STYLE):
        figure = Figure(figsize=(11.0, 1.3 + 0.34 * len(rows)), layout="constrained")
        masks, verdicts, ratios = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 1.4))
        for axes, key, label in (
            (masks, "mask_rms", "change of the mask, logits (RMS)"),
            (verdicts, "defect_rms", "change of the verdict, logits (RMS)"),
        ):
            for offset, part, colour in ((-0.19, "activation", ACTIVATION), (0.19, "weights", WEIGHTS)):
                values = [getattr(getattr(row, part), key) for row in rows]
                what = "its output on the grid" if part == "activation" else "its weights on the grid"
                axes.barh([place + offset for place in places], values, height=0.36, color=colour, label=what)
            together = getattr(found.together, key)
            axes.axvline(together, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
            axes.text(
                together, len(rows) - 0.5, "all layers together ", color=QUIET, fontsize=8.5, ha="right", va="bottom"
            )  # fmt: skip
            axes.set(xlabel=label, xlim=(0, 1.05 * max(together, 1e-6)))
        ratios.scatter([_finite(row.sqnr_db) for row in rows], list(places), color=INK, s=22)
        ratios.set(xlabel="its own SQNR, dB")
        for axes in (masks, verdicts, ratios):
            axes.grid(axis="x", color=GRID, linewidth=0.7)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        names = [row.layer.name + (" *" if row.layer.name in plan.layers else "") for row in rows]
        masks.set_yticks(list(places), names)
        masks.invert_yaxis()
        figure.suptitle(
            f"Each layer quantized alone, {found.count} photographs; * stays float at precision mixed:"
            f" {1 - plan.int8_mac_share:.1%} of the multiply-accumulates",
            fontsize=11,
            color=INK,
        )
        masks.legend(loc="center", bbox_to_anchor=(0.62, 0.4), fontsize=8.5, frameon=True, edgecolor=GRID)
        return svg_bytes(figure, transparent=False)


def read_ranking(folder: Path, run_digest: str) -> dict[str, Any]:
    """What the report shows of a folder that `edgeqc sensitivity` wrote: its picture, and the numbers beside it.

    Args:
        run_digest: of the RUN that the report compares with.

    Raises:
        InputError: it is no such folder, or of another RUN.
    """
    try:
        found = json.loads((folder / NUMBERS).read_bytes())
        shown = {
            "picture": "data:image/svg+xml;base64,"
            + base64.b64encode((folder / PICTURE).read_bytes()).decode("ascii"),
            "n": int(found["n"]),
            "positives": int(found["positives"]),
            "together": {key: float(found["together"][key]) for key in ("defect_rms", "mask_rms")},
            "layers": [
                {
                    "name": str(layer["name"]),
                    "damage": float(layer["damage"]),
                    "mask_rms": float(layer["whole"]["mask_rms"]),
                    "defect_rms": float(layer["whole"]["defect_rms"]),
                    "mac_share": float(layer["mac_share"]),
                }
                for layer in found["layers"][:SHOWN]
            ],
        }
        digest = found["checkpoint_digest"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(
            f"{folder} holds no ranking of layers",
            wanted=f"{NUMBERS} and {PICTURE}, as `edgeqc sensitivity RUN --out FOLDER` writes them",
            got=f"{type(exc).__name__}: {exc}",
        ) from exc
    if digest != run_digest:
        raise InputError(
            f"{folder} ranks the layers of another RUN",
            wanted=f"RUN {run_digest[:16]}, the reference",
            got=f"RUN {str(digest)[:16]}",
            next_step="run `edgeqc sensitivity` on the RUN that is the reference",
        )
    return shown


def _decibel(row: Sensitivity) -> str:
    return f"{row.sqnr_db:.1f} dB" if math.isfinite(row.sqnr_db) else "exact" if row.sqnr_db > 0 else "n/a"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
