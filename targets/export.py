"""`edgeqc export`: calibrate, lower, measure the saved artifact through the shipped runtime, gate.

Candidates are tried in the profile's order of precision. The first that passes the budget on `val` becomes the
artifact; when none does, the last tried is kept under a name that says `rejected`, with its true numbers, and
the exit code is 3. Thresholds are copied from the RUN unchanged, so a flip is a flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge import golden
from edge.artifact import GATE, GOLDEN, Artifact, write_manifest
from edge.folders import new_folder, refuse_existing, write_json
from edge.images import read_image
from edge.inspector import Inspector
from edge.predictions import Predictions, predict
from edge.progress import step
from edge.samples import Sample, read_samples
from quantize.reference import open_run as open_reference
from quantize.run import Run
from targets import calibration, parity
from targets.gate import Budget
from targets.lowering import Lowered, Network, Target
from targets.profile import Profile

GOLDEN_FRAMES = 8


@dataclass(frozen=True)
class Candidate:
    """One precision that was tried.

    Attributes:
        row: the `artifacts` row of `parity.json` against full precision on the gate's split.
        reasons: the limits of the budget that it broke; empty when it passed.
    """

    precision: str
    row: dict[str, Any]
    reasons: list[str]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: `artifact.path` ends in `.rejected` when no candidate passed."""

    artifact: Artifact
    candidates: list[Candidate]
    passed: bool


def export(
    run: Run,
    target: Target,
    data: Path,
    out: Path,
    *,
    profile: Profile,
    budget: Budget,
    precisions: Sequence[str] | None = None,
    calibration_count: int = calibration.DEFAULT_COUNT,
    seed: int = 0,
) -> Exported:
    """Export `run` for `target` into the new folder `out`.

    Raises:
        InputError: bad data set, existing `out`.
        CalibrationError: unusable calibration samples, or images shared with `val`.
        TargetError: the network cannot be lowered, or the profile does not allow it.
    """
    rejected = out.with_name(out.name + ".rejected")
    refuse_existing(out)
    samples = read_samples(data)
    train = [sample for sample in samples if sample.split == "train"]
    val = read_samples(data, "val")
    chosen = calibration.choose(train, min(calibration_count, len(train)), seed)
    calibration.refuse_overlap(chosen, val)
    frames = calibration.frame(chosen, run.input, run.framing)
    network = Network(run.load_model(), run.input, frames.tiles, name=run.name, facts=_format_facts(run))

    with open_reference(run.path) as inspector:
        reference = predict(inspector, val, what="full precision on val")
        golden_frames = _golden_frames(inspector, train)
    facts = _facts(run, target, profile, frames, reference)

    candidates: list[Candidate] = []
    order = list(precisions or profile.precisions(target))
    for precision in order:
        with new_folder(rejected, replace=True) as folder:
            with step(f"lowering to {target.NAME} {precision}"):
                lowered = target.lower(network, precision, folder, profile)
            row, reasons, inspector = _measure(folder, facts, lowered, precision, val, reference, budget)
            candidates.append(Candidate(precision, row, reasons))
            with inspector:
                golden.write(inspector, golden_frames, folder / GOLDEN)
                final = _with_verdict(facts, lowered, precision, inspector, candidates)
            write_json(
                folder / GATE, {"budget": asdict(budget), "candidates": [asdict(c) for c in candidates]}
            )
            write_manifest(folder, final)
        if not reasons:
            rejected.rename(out)
            return Exported(Artifact.open(out), candidates, passed=True)
    return Exported(Artifact.open(rejected), candidates, passed=False)


def _measure(
    folder: Path,
    facts: dict[str, Any],
    lowered: Lowered,
    precision: str,
    val: Sequence[Sample],
    reference: Predictions,
    budget: Budget,
) -> tuple[dict[str, Any], list[str], Inspector]:
    """Predict `val` with the saved files through the runtime, and judge them against full precision."""
    draft = write_manifest(folder, {**facts, **lowered.manifest(), "precision": precision})
    inspector = parity.open_here(draft.path)
    predictions = predict(inspector, list(val), what=f"{draft.target} {precision} on val")
    candidate = parity.Candidate(draft.target, draft.target, precision, predictions)
    row = parity.compare(reference, [candidate], val, budget)["artifacts"][0]
    return row, row["reasons"], inspector


def _format_facts(run: Run) -> dict[str, str]:
    """What goes into each format's own metadata, so that a file that lost its folder still explains itself."""
    return {
        "labels": " ".join(run.decision.labels),
        "confidence_threshold": str(run.decision.threshold),
        "mask_threshold": str(run.decision.mask_threshold),
        "checkpoint_digest": run.digest,
    }


def _facts(
    run: Run, target: Target, profile: Profile, frames: calibration.CalibrationSet, reference: Predictions
) -> dict[str, Any]:
    """Manifest fields that do not depend on the candidate."""
    decision = dict(run.facts["decision"])
    return {
        "name": run.name,
        "version": str(run.facts.get("version", "1")),
        "target": target.NAME,
        "backend": target.BACKEND,
        "device": profile.device,
        "profile": profile.facts(),
        "framing": asdict(run.framing),
        "labels": list(run.decision.labels),
        "decision": decision,
        "mask_threshold": run.decision.mask_threshold,
        "calibration": {"dataset_digest": frames.digest, "count": len(frames.samples), "split": "train"},
        "reference": {"checkpoint_digest": run.digest, "ran_on": reference.meta["ran_on"]},
        "inference_precision": "f32",
        "latency_budget_ms": profile.latency_budget_ms,
        "memory_budget_bytes": profile.memory_bytes,
        "golden": None,
        "gate": None,
    }


def _with_verdict(
    facts: dict[str, Any], lowered: Lowered, precision: str, inspector: Inspector, candidates: list[Candidate]
) -> dict[str, Any]:
    """The final manifest: golden facts, gate summary, and the artifact's own misses and false alarms."""
    last = candidates[-1]
    ran_on = asdict(inspector.session.ran_on)
    step_size = next((o.scale for o in inspector.session.outputs if o.name == "defect"), None)
    return {
        **facts,
        **lowered.manifest(),
        "precision": precision,
        "decision": {
            **facts["decision"],
            "val": {key: last.row[key] for key in ("misses", "false_alarms")},
        },
        "golden": {
            "file": GOLDEN,
            "steps": golden.TOLERANCE_STEPS if step_size or lowered.output_step else 0,
            "step": step_size or lowered.output_step,
            "absolute": 1e-3 if precision == "fp32" else (0.0 if precision == "int8" else 0.1),
            "made_on": ran_on,
        },
        "gate": {
            "passed": not last.reasons,
            "reasons": last.reasons,
            "split": "val",
            "n": last.row["n"],
            "flips": last.row["flips"],
            "ran_on": ran_on,
            "stand_in": ran_on["stand_in"],
        },
    }


def _golden_frames(inspector: Inspector, train: Sequence[Sample]) -> list[np.ndarray]:
    """Frames of `train` whose verdict is clear: half good, half defective, each kind by falling margin.

    A frame on the edge would turn a rounding difference of one step into a failed self-test.
    """
    chosen: list[np.ndarray] = []
    pool = calibration.choose(train, min(4 * GOLDEN_FRAMES, len(train)), seed=1)
    scored = [(inspector.inspect(read_image(s.image)).score - inspector.decision.threshold, s) for s in pool]
    for sign in (-1.0, 1.0):
        kind = sorted((s for s in scored if s[0] * sign > 0), key=lambda pair: -abs(pair[0]))
        chosen += [read_image(sample.image) for _, sample in kind[: GOLDEN_FRAMES // 2]]
    return chosen
