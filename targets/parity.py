"""Parity: what an artifact decides differently from full precision, sample by sample.

Prediction files are compared with prediction files (`edge.predictions`); an artifact or a RUN given in place
of one merely produces it first, from the raw image files, through the shipped runtime. All numbers are
defined in docs/parity.md.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import MANIFEST, Artifact
from edge.command import CHECK_FAILED, DONE, Outcome
from edge.errors import BackendUnavailableError, IncompatibleArtifactError, InputError
from edge.folders import new_folder, refuse_existing, sha256, write_json
from edge.inspector import Inspector, open_inspector
from edge.predictions import Predictions, predict
from edge.samples import Sample, read_samples
from quantize.evaluation import overlaps
from quantize.metrics import decision_metrics, overlap
from targets.gate import Budget, budget_from, configure_budget, refuse_decide
from targets.tried import Tried, read_tried

FULL_PRECISION = "fp32"


@dataclass(frozen=True)
class Candidate:
    """An artifact's predictions.

    Attributes:
        target, precision: None where a prediction file does not say.
        rejected: why `export` rejected the artifact on its own split; empty when it did not, or is not known.
        tried: the precisions that `export` tried; empty for a prediction file.
    """

    name: str
    target: str | None
    precision: str | None
    predictions: Predictions
    rejected: str = ""
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True)
class MaskAgreement:
    """How far two lists of masks agree, in frame coordinates, over `n` samples.

    Attributes:
        iou: sum of intersections over sum of unions.
        mean, p10: mean and 10th percentile of the samples' own intersection over union.

    Two empty masks agree: 1. With no sample at all the three are NaN.
    """

    iou: float
    mean: float
    p10: float
    n: int


def mask_agreement(a: Sequence[NDArray[np.bool_]], b: Sequence[NDArray[np.bool_]]) -> MaskAgreement:
    """Compare masks pairwise; the two of a pair have one shape."""
    counts = [overlap(one, other) for one, other in zip(a, b)]
    if not counts:
        return MaskAgreement(math.nan, math.nan, math.nan, 0)
    ious = [count.iou if count.union else 1.0 for count in counts]
    union = sum(count.union for count in counts)
    iou = sum(count.intersection for count in counts) / union if union else 1.0
    return MaskAgreement(iou, sum(ious) / len(ious), float(np.percentile(ious, 10)), len(ious))


def compare(
    reference: Predictions,
    candidates: Sequence[Candidate],
    samples: Sequence[Sample],
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Compare each candidate with `reference` and with each other; the content of `parity.json`.

    Args:
        reference: full precision.
        samples: the data set's rows with their labels and masks; predictions are matched to them by id.
        budget: what `passed` means; the default budget when None.

    Returns:
        `n`, `reference`, `artifacts`, `cross` as documented; what cannot be measured is NaN.

    Raises:
        InputError: the predictions are not of these samples or of other image bytes, thresholds differ, two
            candidates share a name, or the samples are of split `decide`.
    """
    refuse_decide(samples, "a gate")
    budget = budget or Budget()
    reference, candidates = align(reference, candidates, samples)
    metrics = _metrics(reference, samples)
    rows = [_row(reference, metrics, candidate, samples, budget) for candidate in candidates]
    meta = reference.meta
    return {
        "n": len(samples),
        "positives": sum(sample.defective for sample in samples),
        "reference": {
            "name": meta.get("name"),
            "precision": meta.get("precision"),
            "ran_on": _ran_on(reference),
            "source_digest": meta.get("source_digest"),
            "threshold": reference.threshold,
            "mask_threshold": float(meta["mask_threshold"]),
            "sample": metrics["sample"],
            "seg": metrics["seg"],
        },
        "budget": asdict(budget),
        "artifacts": rows,
        "cross": [_pair(reference, a, b) for a, b in combinations(candidates, 2)],
    }


def _row(
    reference: Predictions,
    metrics: Mapping[str, Any],
    candidate: Candidate,
    samples: Sequence[Sample],
    budget: Budget,
) -> dict[str, Any]:
    ours = candidate.predictions
    defective = np.array([sample.defective for sample in samples], bool)
    was, now = reference.verdicts, ours.verdicts
    agreement = mask_agreement(_chosen(reference.masks, was), _chosen(ours.masks, was))
    own = _metrics(ours, samples)
    ran_on = _ran_on(ours)
    row: dict[str, Any] = {
        "name": candidate.name,
        "target": candidate.target,
        "precision": candidate.precision,
        "ran_on": ran_on,
        "stand_in": bool(ran_on.get("stand_in")),
        "n": len(samples),
        "flips": int((was != now).sum()),
        "new_misses": int((defective & was & ~now).sum()),
        "new_false_alarms": int((~defective & ~was & now).sum()),
        "misses": own["sample"]["misses"],
        "false_alarms": own["sample"]["false_alarms"],
        "score_max_abs_diff": _largest_change(reference, ours),
        "mask_agreement_iou": agreement.iou,
        "mask_agreement_mean": agreement.mean,
        "mask_agreement_p10": agreement.p10,
        "mask_agreement_n": agreement.n,
        "delta": {
            key: own[group][key] - metrics[group][key]
            for group, key in (("sample", "ap"), ("sample", "f1"), ("seg", "seg_miou"), ("seg", "seg_recall"))
        },
    }
    reasons = budget.judge(row)
    if candidate.rejected:  # one lucky split does not undo the gate
        reasons.append(candidate.rejected)
    return {**row, "passed": not reasons, "reasons": reasons, "not_judged": budget.not_judged(row)}


def _pair(reference: Predictions, a: Candidate, b: Candidate) -> dict[str, Any]:
    was = reference.verdicts
    one, other = a.predictions, b.predictions
    return {
        "a": a.name,
        "b": b.name,
        "flips": int((one.verdicts != other.verdicts).sum()),
        "score_max_abs_diff": _largest_change(one, other),
        "mask_agreement_iou": mask_agreement(_chosen(one.masks, was), _chosen(other.masks, was)).iou,
    }


def _metrics(predictions: Predictions, samples: Sequence[Sample]) -> dict[str, Any]:
    return decision_metrics(
        [sample.defective for sample in samples],
        predictions.defect_logits,
        predictions.threshold,
        overlaps(predictions, samples),
    )


def _largest_change(a: Predictions, b: Predictions) -> float:
    return float(np.abs(a.defect_logits.astype(np.float64) - b.defect_logits).max())


def _chosen(masks: Sequence[NDArray[np.bool_]], where: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    return [mask for mask, chosen in zip(masks, where) if chosen]


def _ran_on(predictions: Predictions) -> dict[str, Any]:
    ran_on = predictions.meta.get("ran_on")
    return dict(ran_on) if isinstance(ran_on, Mapping) else {}


def align(
    reference: Predictions, candidates: Sequence[Candidate], samples: Sequence[Sample]
) -> tuple[Predictions, list[Candidate]]:
    """Put all predictions into the order of `samples` and check that they can be compared.

    Raises:
        InputError: see `compare`.
    """
    if not samples:
        raise InputError("there is no sample to compare on", wanted="at least one")
    repeated = [name for name, count in Counter(c.name for c in candidates).items() if count > 1]
    if repeated:
        raise InputError("two artifacts have the same name", wanted="a name for each", got=repeated[0])
    digests = {sample.id: sha256(sample.image) for sample in samples}
    reference = _in_order(reference, "the reference", digests)
    aligned = []
    for candidate in candidates:
        predictions = _in_order(candidate.predictions, candidate.name, digests)
        _check_comparable(reference, predictions, candidate.name)
        aligned.append(replace(candidate, predictions=predictions))
    return reference, aligned


def _in_order(predictions: Predictions, name: str, digests: Mapping[str, str]) -> Predictions:
    """The predictions in the order of `digests` (sample id -> SHA-256 of the image file)."""
    place: dict[str, int] = {}
    for index, sample in enumerate(predictions.sample_ids):
        if place.setdefault(sample, index) != index:
            raise InputError(f"{name} has two predictions of sample {sample}")
    for sample in (*digests, *place):
        if sample not in place or sample not in digests:
            raise InputError(
                f"{name} is not of the same samples",
                wanted=f"{len(digests)} samples of the data set's split",
                got=f"{len(place)} predictions; "
                + (f"none of {sample}" if sample in digests else f"{sample} is not in the split"),
                next_step="predict on the same data set and split",
            )
    order = [place[sample] for sample in digests]
    for sample, index in zip(digests, order):
        if predictions.image_sha256[index] != digests[sample]:
            raise InputError(
                f"{name} saw another image of sample {sample}",
                wanted=f"sha256 {digests[sample]}",
                got=f"sha256 {predictions.image_sha256[index]}",
                next_step="predict on the same image files",
            )
        if not math.isfinite(predictions.defect_logits[index]):
            raise InputError(f"{name} has a score that is not a number", got=f"sample {sample}")
    return replace(
        predictions,
        sample_ids=tuple(digests),
        image_sha256=tuple(digests.values()),
        defect_logits=predictions.defect_logits[order],
        masks=tuple(predictions.masks[index] for index in order),
        latency_ms=predictions.latency_ms[order],
    )


def _check_comparable(reference: Predictions, predictions: Predictions, name: str) -> None:
    for key in ("threshold", "mask_threshold"):
        wanted, got = reference.meta.get(key), predictions.meta.get(key)
        if not isinstance(wanted, (int, float)) or wanted != got:
            raise InputError(
                f"{name} was decided at another {key} than the reference",
                wanted=wanted,
                got=got,
                next_step="`export` copies thresholds unchanged: export the artifact again from this RUN",
            )
    for sample, ours, theirs in zip(reference.sample_ids, predictions.masks, reference.masks):
        if ours.shape != theirs.shape:
            raise InputError(
                f"{name} has a mask of another size for sample {sample}", wanted=theirs.shape, got=ours.shape
            )


def produce(path: Path, samples: Sequence[Sample], *, stand_in: bool = True) -> Predictions:
    """Predict `samples` with an artifact or a RUN, as `edgeqc predict` does.

    Args:
        stand_in: where the target's own device is absent, run on the manifest's stand-in and say so.
    """
    with open_here(path, stand_in=stand_in) as inspector:
        return predict(inspector, list(samples), what=f"predicting with {path.name}")


def open_here(path: Path, *, stand_in: bool = True) -> Inspector:
    """Open an artifact on its own device, or on its stand-in where that is absent (host verbs only).

    Raises:
        BackendUnavailableError: the device is absent, and there is no stand-in or it must not be used.
    """
    try:
        return open_inspector(path)
    except (BackendUnavailableError, IncompatibleArtifactError) as exc:
        if not stand_in or not (path / MANIFEST).is_file():
            raise
        artifact = Artifact.open(path)
        # A device that is there refuses a file that was not compiled for it yet; the host can still run that file.
        uncompiled = artifact.target == "edgetpu" and str(artifact.manifest["model"]).count("_edgetpu") == 0
        if artifact.stand_in is None or (isinstance(exc, IncompatibleArtifactError) and not uncompiled):
            raise
        return open_inspector(path, stand_in=True)


def load_or_produce(path: Path, samples: Sequence[Sample], *, stand_in: bool = True) -> Predictions:
    """Read a prediction file, or produce it when `path` is an artifact or RUN folder."""
    if path.is_dir():
        return produce(path, samples, stand_in=stand_in)
    return Predictions.load(path)


def configure_parity(parser: ArgumentParser) -> None:
    """The arguments of `edgeqc parity`."""
    parser.add_argument("artifact", type=Path, nargs="+", help="artifact folder, or predictions.npz")
    parser.add_argument(
        "--reference", type=Path, help="RUN folder, or its predictions.npz (not with --layers)"
    )
    parser.add_argument("--data", type=Path, required=True, help="data set folder")
    parser.add_argument("--split", default="test", help="split to compare on (test)")
    parser.add_argument("--out", type=Path, help="new folder for the results; --layers does without")
    parser.add_argument(
        "--sensitivity",
        type=Path,
        metavar="FOLDER",
        help="of `edgeqc sensitivity`, for the report (not with --layers)",
    )
    configure_budget(parser)


def run_parity(arguments: Namespace) -> Outcome:
    """`edgeqc parity`: writes parity.json, report.html and predictions/*.npz; exit code 3 on a failure."""
    from targets.report import write_report
    from targets.report.sensitivity import read_ranking
    from targets.report.text import table

    for option in ("reference", "out"):
        if getattr(arguments, option) is None:
            raise InputError(
                f"--{option} is missing",
                wanted="edgeqc parity ARTIFACT... --reference RUN --data D --out FOLDER",
                next_step="give the RUN that the artifacts were exported from, or compare two with --layers",
            )
    refuse_existing(arguments.out)
    budget = budget_from(arguments)
    samples = read_samples(arguments.data, arguments.split)
    refuse_decide(samples, "a gate")  # before anything is measured on it
    reference = load_or_produce(arguments.reference, samples)
    _check_full_precision(reference, arguments.reference)
    ranking = None
    if arguments.sensitivity is not None:
        ranking = read_ranking(arguments.sensitivity, str(reference.meta.get("source_digest")))
    candidates = []
    for name, path in zip(names(arguments.artifact), arguments.artifact):
        predictions = load_or_produce(path, samples)
        target, precision = predictions.meta.get("target"), predictions.meta.get("precision")
        rejected = _rejected(predictions)
        candidates.append(Candidate(name, target, precision, predictions, rejected, read_tried(path)))
    result = {**compare(reference, candidates, samples, budget), "split": arguments.split}
    with new_folder(arguments.out) as folder:
        write_json(folder / "parity.json", result)
        reference.save(folder / "predictions" / "reference.npz")
        for number, candidate in enumerate(candidates, 1):
            file = f"{number}-{re.sub(r'[^A-Za-z0-9._-]+', '-', candidate.name)}.npz"
            candidate.predictions.save(folder / "predictions" / file)
        write_report(
            folder / "report.html",
            result,
            reference,
            candidates,
            samples,
            data=arguments.data.name,
            ranking=ranking,
        )
    failed = [row for row in result["artifacts"] if not row["passed"]]
    lines = [table(result["artifacts"]), ""]
    lines += [f"{row['name']} fails: {'; '.join(row['reasons'])}" for row in failed]
    lines += [
        f"{row['name']}, not judged: {'; '.join(row['not_judged'])}"
        for row in result["artifacts"]
        if row["not_judged"]
    ]
    lines.append(f"report: {arguments.out / 'report.html'}")
    return Outcome("\n".join(lines), result, CHECK_FAILED if failed else DONE)


def _rejected(predictions: Predictions) -> str:
    """What the gate of `export` said of the artifact that predicted, if it refused it."""
    gate = predictions.meta.get("gate") or {}
    if gate.get("passed") is not False:
        return ""
    return f"rejected by export on {gate.get('split')}: " + "; ".join(map(str, gate.get("reasons") or ()))


def _check_full_precision(reference: Predictions, path: Path) -> None:
    precision = reference.meta.get("precision")
    if reference.meta.get("target") is not None or precision not in (None, FULL_PRECISION):
        raise InputError(
            f"{path} is not full precision, so nothing can be measured against it",
            wanted="a RUN folder, or predictions made with one",
            got=f"{reference.meta.get('target')} {precision}",
            next_step="give the RUN that the artifacts were exported from as --reference",
        )


def names(paths: Sequence[Path]) -> list[str]:
    """A short name for each path, all different: the last part, else the last two, else numbered."""

    def tail(path: Path, parts: int) -> str:
        path = path.with_suffix("") if path.suffix == ".npz" else path
        name = "/".join(path.absolute().parts[-parts:])
        return name.encode("utf-8", "replace").decode()  # a file name need not be UTF-8; JSON and HTML are

    for parts in (1, 2):
        short = [tail(path, parts) for path in paths]
        if len(set(short)) == len(short):
            return short
    return [f"{number}:{name}" for number, name in enumerate(short, 1)]
