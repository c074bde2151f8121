"""`report.html`: the parity of all artifacts on one page that needs nothing but itself.

The page loads nothing (its Content-Security-Policy says so), runs no script, prints on paper and reads on a
phone. Every text from outside, sample names first of all, is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from edge.images import read_image
from edge.predictions import Predictions
from edge.samples import Sample
from quantize.data.dataset import read_mask
from quantize.evaluation import overlaps
from quantize.metrics import Overlap
from targets.gate import Budget
from targets.parity import Candidate, align
from targets.report import charts, pictures
from targets.report.cases import Case, cases, worst
from targets.report.page import write_page
from targets.report.recall import by_area, by_type, defects
from targets.tried import fallback

SHOWN = 10


def write_report(
    path: Path,
    result: Mapping[str, Any],
    reference: Predictions,
    candidates: Sequence[Candidate],
    samples: Sequence[Sample],
    *,
    data: str,
    shown: int = SHOWN,
    ranking: Mapping[str, Any] | None = None,
    written: datetime | None = None,
) -> None:
    """Write the report of `result`, which `targets.parity.compare` made of the other arguments.

    Args:
        data: the data set's name, for the heading.
        shown: worst samples per artifact.
        ranking: of layers, as `targets.report.sensitivity.read_ranking` gives it.
        written: the date on the page; now when None.
    """
    reference, aligned = align(reference, candidates, samples)
    marked = overlaps(reference, samples)
    photographs: dict[int, dict[str, Any]] = {}
    sections = [
        _section(row, reference, marked, candidate, samples, photographs, shown)
        for row, candidate in zip(result["artifacts"], aligned)
    ]
    write_page(
        path,
        "report.html",
        written,
        result=result,
        sections=sections,
        photographs=photographs,
        failed=[row for row in result["artifacts"] if not row["passed"]],
        budget=Budget(**result["budget"]).limits(),
        cross={(pair["a"], pair["b"]): pair for pair in result["cross"]},
        data=data,
        ranking=ranking,
        split=result.get("split"),
        any_stand_in=any(row["stand_in"] for row in result["artifacts"]),
    )


def _section(
    row: Mapping[str, Any],
    reference: Predictions,
    marked: Sequence[Overlap | None],
    candidate: Candidate,
    samples: Sequence[Sample],
    photographs: dict[int, dict[str, Any]],
    shown: int,
) -> dict[str, Any]:
    """What the template shows of one artifact; adds the photographs that it needs.

    Args:
        marked: what full precision marks of the truth.
    """
    ours = candidate.predictions
    every = cases(reference, ours, samples)
    chosen = worst(every, shown)
    numbers = {case.index: place for case, place in zip(chosen, count(1))}
    flips = [case for case in every if case.kind]
    defective = [sample.defective for sample in samples]
    true = defects(samples, reference, ours, marked, overlaps(ours, samples))
    return {
        "row": row,
        "scatter": charts.score_scatter(
            reference.defect_logits, ours.defect_logits, defective, reference.threshold, every, numbers
        ),
        "shift": charts.shift_histogram(every),
        "agreement": charts.agreement_histogram(every),
        "recall": [
            {"by": by, "groups": groups, "spans": spans}
            for by, groups, spans in (
                ("defect type", by_type(true), False),
                ("share of the frame", by_area(true), True),
            )
            if groups
        ],
        "unmeasured": sum(defect.area is None for defect in true),
        "tried": candidate.tried,
        "fallback": fallback(candidate.tried),
        "kinds": {kind: sum(case.kind == kind for case in flips) for kind in charts.FLIPS},
        "cards": [_card(case, reference, ours, samples[case.index], photographs) for case in chosen],
        "flips": [_scores(case, reference, ours, samples[case.index]) for case in flips],
    }


def _scores(case: Case, reference: Predictions, ours: Predictions, sample: Sample) -> dict[str, Any]:
    return {
        "case": case,
        "id": sample.id,
        "defective": sample.defective,
        "defect_type": sample.defect_type,
        "was": float(reference.defect_logits[case.index]),
        "now": float(ours.defect_logits[case.index]),
        "was_defective": bool(reference.verdicts[case.index]),
        "now_defective": bool(ours.verdicts[case.index]),
    }


def _card(
    case: Case,
    reference: Predictions,
    ours: Predictions,
    sample: Sample,
    photographs: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    """One sample with its three outlines; the photograph is put on the page once, for all artifacts."""
    was, now = reference.masks[case.index], ours.masks[case.index]
    if case.index not in photographs:
        truth = read_mask(sample) if sample.defective and sample.mask else None
        height, width = pictures.display_size(*was.shape)
        photographs[case.index] = {
            "uri": pictures.photograph(read_image(sample.image)),
            "height": height,
            "width": width,
            "truth": pictures.outline(truth) if truth is not None else pictures.Outline(),
            "truth_known": truth is not None or not sample.defective,
        }
    return {
        **_scores(case, reference, ours, sample),
        "photograph": photographs[case.index],
        "reference": pictures.outline(was),
        "device": pictures.outline(now),
    }
