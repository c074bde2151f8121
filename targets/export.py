"""`edgeqc export`: calibrate, lower, measure the saved artifact through the shipped runtime, gate.

Candidates are tried in the profile's order of precision, int8 with two kinds of ranges. The first that passes the
budget on `val` becomes the artifact; when none does, the nearest to it is kept under a name that says `rejected`, with
its true numbers, and the exit code is 3. Thresholds are copied from the RUN unchanged, so a flip is a flip.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edge import golden
from edge.artifact import GATE, GOLDEN, Artifact, read_manifest, write_manifest
from edge.errors import InputError
from edge.folders import refuse_existing, write_json
from edge.images import read_image
from edge.inspector import Inspector
from edge.predictions import Predictions, predict
from edge.progress import step
from edge.samples import Sample, dataset_digest, read_samples
from quantize.decision import refuse_copies
from quantize.recipe import WIDENINGS, GridRecipe
from quantize.reference import open_run as open_reference
from quantize.run import Run
from targets import calibration, parity
from targets.errors import TargetError
from targets.gate import Budget
from targets.lowering import ON_GRID, Lowered, Network, Target
from targets.profile import Profile
from targets.tried import grid_name

GOLDEN_FRAMES = 8
# Ways onto the grid, cheapest on the device first, then what clips nothing: which ranges are nearer differs between
# networks, and the tails that "mse" clips are the defects.
GRIDS = (*(GridRecipe(widening=share) for share in (0.0, *WIDENINGS)), GridRecipe(ranges="minmax"))


@dataclass(frozen=True)
class Candidate:
    """One precision that was tried.

    Attributes:
        ranges: how the ranges of the grid were chosen, see `quantize.ranges`; None off the grid, or where it was tuned.
        widening: the share of multiply-accumulates that copies of channels were allowed, see `quantize.widening`.
        row: the `artifacts` row of `parity.json` against full precision on the gate's split.
        reasons: the limits of the budget that it broke, and the device's objections; empty when it passed.
    """

    precision: str
    ranges: str | None
    widening: float
    row: dict[str, Any]
    reasons: list[str]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: `artifact.path` ends in `.rejected` when no candidate passed.

    `order_measured` says whether the order of precisions rests on latencies of the device.
    """

    artifact: Artifact
    candidates: list[Candidate]
    passed: bool
    order_measured: bool


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
    allow_cpu: bool = False,
    all_candidates: bool = False,
) -> Exported:
    """Export `run` for `target` into the new folder `out`.

    Candidates are tried until one passes; with `all_candidates` the others are measured too, and the first that
    passed is still the artifact. One of which the device would leave operations to the CPU does not pass, unless
    `allow_cpu`.

    Raises:
        InputError: bad data set, copies of its split `decide` elsewhere in it, existing `out`.
        CalibrationError: unusable calibration samples, or images shared with `val`.
        TargetError: the network cannot be lowered, or the profile does not allow it.
    """
    rejected = out.with_name(out.name + ".rejected")
    refuse_existing(out)
    _refuse_foreign(rejected)
    order = list(precisions or profile.precisions(target))
    if run.tuned_grid and profile.int8_saturates:
        raise TargetError(
            f"the grid of {run.path} was tuned for weights of 8 bits",
            wanted=f"weights of 7 bits: products of int8 overflow on profile {profile.name}",
            next_step="export the RUN that it was tuned from",
        )
    if not order:
        raise TargetError(
            f"profile {profile.name} allows no precision that target {target.NAME} writes",
            wanted=", ".join(target.PRECISIONS),
            got=", ".join(profile.order),
        )
    samples = read_samples(data)
    train = [sample for sample in samples if sample.split == "train"]
    val = read_samples(data, "val")
    chosen = calibration.choose(train, min(calibration_count, len(train)), seed)
    calibration.refuse_overlap(chosen, val)
    refuse_copies(samples)
    frames = calibration.frame(chosen, run.input, run.framing)
    network = Network(
        run.load_model(),
        run.input,
        frames.tiles,
        name=run.name,
        facts=_format_facts(run),
        recipe=profile.grid(GridRecipe()),
        tuned=run.tuned_grid,
    )

    with open_reference(run.path) as inspector:
        reference = predict(inspector, val, what="full precision on val")
        golden_frames = _golden_frames(inspector, train)
    facts = _facts(run, target, profile, frames, reference)
    facts["calibration"]["dataset_digest"] = dataset_digest(samples)

    candidates: list[Candidate] = []
    manifests: list[tuple[Path, dict[str, Any]]] = []
    # Everything is made and measured in a staging folder, so that neither name is seen before its verdict is in.
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        for place, (precision, recipe, on_grid) in enumerate(_candidates(order, network, profile)):
            folder = Path(staging) / str(place)
            folder.mkdir()
            chosen_by = {"ranges": recipe and recipe.ranges, "widening": recipe.widening if recipe else 0.0}
            own = {**facts, "calibration": {**facts["calibration"], **chosen_by}}
            with step(f"lowering to {target.NAME} {precision}{grid_name(**chosen_by)}"):
                lowered = target.lower(on_grid, precision, folder, profile)
            draft = write_manifest(folder, {**own, **lowered.manifest(), "precision": precision})
            with parity.open_here(draft.path) as inspector:
                objections = () if allow_cpu else lowered.objections
                row, reasons = _measure(inspector, precision, val, reference, budget, objections)
                candidates.append(Candidate(precision, **chosen_by, row=row, reasons=reasons))
                golden.write(inspector, golden_frames, folder / GOLDEN)
                final = _with_verdict(own, lowered, precision, inspector, candidates[-1])
            manifests.append((folder, final))
            if not reasons and not all_candidates:
                break
        passed = next((place for place, one in enumerate(candidates) if not one.reasons), None)
        folder, final = manifests[_nearest(candidates) if passed is None else passed]
        verdict = {"budget": asdict(budget), "order_measured": profile.is_measured(order)}
        write_json(folder / GATE, {**verdict, "candidates": [asdict(c) for c in candidates]})
        write_manifest(folder, final)
        kept = rejected if passed is None else out
        if passed is None and rejected.exists():  # an export's, as `_refuse_foreign` saw
            shutil.rmtree(rejected)
        folder.rename(kept)
    return Exported(Artifact.open(kept), candidates, passed is not None, profile.is_measured(order))


def _candidates(
    order: Sequence[str], network: Network, profile: Profile
) -> Iterator[tuple[str, GridRecipe | None, Network]]:
    """Precision, way onto the grid and network of everything to try, in this order.

    int8 is tried in all `GRIDS`, unless it was tuned; there, and off the grid, is no way to choose.
    """
    for precision in order:
        if precision not in ON_GRID or (network.tuned and precision == "int8"):
            yield precision, None, network
        elif precision == "mixed":
            # Nothing that costs less came near enough.
            recipe = replace(network.recipe, widening=WIDENINGS[0])
            yield precision, recipe, replace(network, recipe=recipe, made={})
        else:
            for recipe in map(profile.grid, GRIDS):
                same = recipe == network.recipe
                yield precision, recipe, network if same else replace(network, recipe=recipe, made={})


def _nearest(candidates: Sequence[Candidate]) -> int:
    """Place of the candidate that is nearest to full precision by its masks.

    Thousands of pixels tell what a handful of verdicts near the threshold does not.
    """
    agreements = [candidate.row["mask_agreement_iou"] or 0.0 for candidate in candidates]
    return agreements.index(max(agreements))


def _measure(
    inspector: Inspector,
    precision: str,
    val: Sequence[Sample],
    reference: Predictions,
    budget: Budget,
    objections: Sequence[str],
) -> tuple[dict[str, Any], list[str]]:
    """Predict `val` with the saved files through the runtime: the row against full precision, and what it breaks.

    `objections` are reasons from elsewhere why the candidate does not pass.
    """
    name = str(inspector.target)
    predictions = predict(inspector, list(val), what=f"{name} {precision} on val")
    candidate = parity.Candidate(name, name, precision, predictions)
    row = parity.compare(reference, [candidate], val, budget)["artifacts"][0]
    return row, [*row["reasons"], *objections]


def _refuse_foreign(rejected: Path) -> None:
    """A folder under the rejected name gives way only if an export wrote it.

    Raises:
        InputError: it is somebody else's.
    """
    if rejected.exists() and (read_manifest(rejected)["gate"] or {}).get("passed") is not False:
        raise InputError(
            f"{rejected} would be overwritten and is no rejected artifact", next_step="choose another --out"
        )


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
    # An older RUN says nothing of a guarantee; the manifest always does.
    silent = {"guarantee": None, "guarantee_reason": "the RUN was trained by a version that gave none"}
    decision = silent | run.facts["decision"]
    return {
        "name": run.name,
        "version": f"{str(run.facts.get('created', ''))[:10] or 'undated'}+{run.digest[:8]}",
        "target": target.NAME,
        "backend": target.BACKEND,
        "device": profile.device,
        "profile": profile.facts(),
        "framing": asdict(run.framing),
        "labels": list(run.decision.labels),
        "decision": decision,
        "mask_threshold": run.decision.mask_threshold,
        "calibration": {"images_digest": frames.digest, "count": len(frames.samples), "split": "train"},
        "reference": {"checkpoint_digest": run.digest, "ran_on": reference.meta["ran_on"]},
        "inference_precision": "f32",
        "latency_budget_ms": profile.latency_budget_ms,
        "memory_budget_bytes": profile.memory_bytes,
        "golden": None,
        "gate": None,
    }


def _with_verdict(
    facts: dict[str, Any], lowered: Lowered, precision: str, inspector: Inspector, last: Candidate
) -> dict[str, Any]:
    """The final manifest: golden facts, gate summary, and the artifact's own misses and false alarms."""
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
