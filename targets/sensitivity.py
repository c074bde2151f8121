"""`edgeqc sensitivity`: which photographs layers are measured on, and what is reported of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.preprocess import encode
from edge.samples import Sample, read_samples
from quantize.decision import refuse_copies
from quantize.run import Run
from targets import calibration
from targets.lowering import Network

if TYPE_CHECKING:
    from quantize.mixed import MixedPlan
    from quantize.sensitivity import Sensitivities


@dataclass(frozen=True)
class Ranking:
    """The layers of a RUN, and what precision `mixed` would make of them.

    Attributes:
        calibrated: photographs that set the ranges.
    """

    found: Sensitivities
    plan: MixedPlan
    calibrated: int


def choose(samples: list[Sample], images: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Photographs to measure on, half of them defective, and those of other parts that set the ranges.

    Both are of split `train`: `val` judges what is made of them. At most half of the split is measured on.

    Raises:
        CalibrationError: too few photographs, or of one kind only, for one of the two.
    """
    train = [sample for sample in samples if sample.split == "train"]
    measured = calibration.choose(train, min(images, len(train) // 2), seed)
    parts = {sample.group for sample in measured}
    others = [sample for sample in train if sample.group not in parts]
    calibrated = calibration.choose(others, min(calibration.DEFAULT_COUNT, len(others)), seed)
    calibration.refuse_overlap(calibrated, measured)
    return measured, calibrated


def rank_layers(run: Run, data: Path, *, images: int = 32, seed: int = 0) -> Ranking:
    """Put the network on the grid, and quantize each layer alone.

    Raises:
        InputError: bad data set, or copies of its split `decide` elsewhere in it.
        CalibrationError: see `choose`.
    """
    samples = read_samples(data)
    measured, calibrated = choose(samples, images, seed)
    refuse_copies(samples)

    import torch

    from quantize.mixed import plan_mixed
    from quantize.sensitivity import measure

    tiles = calibration.frame(calibrated, run.input, run.framing).tiles
    network = Network(run.load_model(), run.input, tiles, name=run.name)
    spec = replace(run.input, layout="nchw", file_dtype="float32", encoding="centered_float")
    photographs = [
        torch.cat(
            [
                torch.from_numpy(encode(t, spec))
                for t in calibration.frame([one], run.input, run.framing).tiles
            ]
        )
        for one in measured
    ]
    found = measure(
        network.grid,
        photographs,
        threshold=run.decision.threshold,
        mask_threshold=run.decision.mask_threshold,
    )
    return Ranking(found, plan_mixed(found.rows), len(calibrated))


def as_data(ranking: Ranking, run: Run) -> dict[str, Any]:
    """What `--json` and sensitivity.json hold; `layers` by falling damage."""
    layers = []
    for row in ranking.found.rows:
        facts = asdict(row)
        layers.append({**facts.pop("layer"), **facts})
    return {
        "run": run.name,
        "checkpoint_digest": run.digest,
        "n": ranking.found.count,
        "positives": ranking.found.positives,
        "calibrated": ranking.calibrated,
        "threshold": run.decision.threshold,
        "mask_threshold": run.decision.mask_threshold,
        "together": asdict(ranking.found.together),
        "mixed": asdict(ranking.plan),
        "layers": layers,
    }
