"""`make bench-grids`: how near each way of choosing integers comes to full precision, on parts held out of training.

Takes the networks that `make bench-recipes` trained (recipe `default`) with the third of the parts that each did not
see; `test` is never opened. Everything is computed by torch on the quantized graph. Resumes; what is missing says
`not run`. Writes benchmarks/results/grids.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import results_file
from benchmarks.recipes.__main__ import EPOCHS
from benchmarks.recipes.folds import FOLDS
from edge.folders import write_json
from quantize.recipe import GridRecipe

if TYPE_CHECKING:
    from torch import Tensor, nn

SEED = 0
# Good tiles are many and much alike: every third will do.
GOOD_STEP = 3


@dataclass(frozen=True)
class Grid:
    """One way to choose integers, what people call it, and how many tiles, drawn by which seed, it is chosen from."""

    id: str
    title: str
    recipe: GridRecipe
    count: int = 128
    seed: int = SEED


def _plain(rounding: str, ranges: str) -> GridRecipe:
    return GridRecipe(ranges, rounding, one_sided=False, equalised=False, tie_free=False)


GRIDS = (
    Grid("nearest", "nearest rounding, ranges minmax", _plain("nearest", "minmax")),
    Grid("minmax", "second-order rounding, ranges minmax", _plain("second-order", "minmax")),
    Grid("mse", "second-order rounding, ranges mse", _plain("second-order", "mse")),
    Grid("percentile", "second-order rounding, ranges percentile", _plain("second-order", "percentile")),
    Grid(
        "one-sided",
        "as mse, one-sided tensors on all of the grid",
        GridRecipe(equalised=False, tie_free=False),
    ),
    Grid("equalised", "as one-sided, equalised", GridRecipe(tie_free=False)),
    Grid("tie-free", "as equalised, requantized without ties", GridRecipe()),
    Grid("tie-free-minmax", "as tie-free, ranges minmax", GridRecipe(ranges="minmax")),
    Grid("tie-free-25", "as tie-free, 25 % wider", GridRecipe(widening=0.25)),
    Grid("tie-free-60", "as tie-free, 60 % wider", GridRecipe(widening=0.6)),
    *(
        Grid(
            f"tie-free-from-{count}-seed{seed}",
            f"as tie-free, from {count} tiles, draw {seed}",
            GridRecipe(),
            count,
            seed,
        )
        for count, seed in ((128, 1), (128, 2), (32, 0), (64, 0), (256, 0))
    ),
)


def main(words: Sequence[str] | None = None) -> None:
    options = _options(words)
    rows = []
    for fold in range(FOLDS):
        for grid in GRIDS:
            file = options.work / "grids" / f"{grid.id}-fold{fold}.json"
            run = options.work / "runs" / f"default-fold{fold}-seed{SEED}-{EPOCHS}"
            if not file.is_file() and not options.only_report and (run / "run.json").is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, measure(run, options.work / f"fold-{fold}", grid))
            rows += _rows(grid, fold, json.loads(file.read_text()) if file.is_file() else None)
    print(results_file.write("grids", "make bench-grids", [SEED], rows))


def measure(run_folder: Path, data: Path, grid: Grid) -> dict[str, Any]:
    """Put the network of a RUN on `grid`, and compare its answers for held-out tiles with full precision's."""
    import torch

    from quantize.data.dataset import open_dataset
    from quantize.data.framed import frame_samples
    from quantize.grid import calibrate
    from quantize.models.batch_norm import fold_batch_norm
    from quantize.quiet import quiet
    from quantize.run import open_run
    from quantize.training.augmentation import centered

    run, dataset = open_run(run_folder), open_dataset(data)
    shape = (run.input.channels, run.input.height, run.input.width)
    network = fold_batch_norm(run.load_model(), shape)
    train = frame_samples(dataset.split("train"), run.input, run.framing)
    val = frame_samples(dataset.split("val"), run.input, run.framing)
    generator = torch.Generator().manual_seed(grid.seed)
    kinds = [torch.nonzero(train.defective == kind).flatten() for kind in (False, True)]
    chosen = [kind[torch.randperm(len(kind), generator=generator)][: grid.count // 2] for kind in kinds]
    defective, good = torch.nonzero(val.defective).flatten(), torch.nonzero(~val.defective).flatten()
    images = centered(val.tiles[torch.cat([defective, good[::GOOD_STEP]])])
    with quiet():
        calibrated = calibrate(
            network,
            centered(train.tiles[torch.cat(chosen)]).split(1),
            input_shape=(run.input.channels, run.input.height, run.input.width),
            recipe=grid.recipe,
        )
        graph = calibrated.folded
    return _compare(network, graph, images, run.decision.threshold, run.decision.mask_threshold)


def _compare(
    network: nn.Module, graph: nn.Module, images: Tensor, threshold: float, mask_threshold: float
) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    full, ours = (list(_answers(module, images)) for module in (network, graph))
    scores = [torch.cat([score for score, _ in answers]) for answers in (full, ours)]
    masks = [
        functional.interpolate(
            torch.cat([mask for _, mask in answers]), images.shape[2:], mode="bilinear", align_corners=False
        )
        for answers in (full, ours)
    ]
    found = scores[0] >= threshold
    marked = [(mask >= mask_threshold)[found] for mask in masks]
    return {
        "n": len(images),
        "flips": int(((scores[1] >= threshold) != found).sum()),
        "agreement": float((marked[0] & marked[1]).sum() / (marked[0] | marked[1]).sum().clamp_min(1)),
        "score_rms": float((scores[1] - scores[0]).square().mean().sqrt()),
        "mask_rms": float((masks[1] - masks[0])[found].square().mean().sqrt()),
        "commit": results_file.commit(),
    }


def _answers(module: nn.Module, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    import torch

    with torch.no_grad():
        for image in images.split(1):
            defect, mask = module(image)
            yield defect.flatten(), mask


def _rows(grid: Grid, fold: int, made: dict[str, Any] | None) -> list[dict[str, Any]]:
    what = f"third {fold}, {grid.title}"
    id = f"{grid.id}.{fold}"
    if made is None:
        return [results_file.row(id, what, None)]
    note = f"{made['n']} tiles, commit {made['commit']}"
    return [
        results_file.row(f"{id}.agreement", f"{what}: mask agreement", made["agreement"], note=note),
        results_file.row(f"{id}.flips", f"{what}: verdicts flipped", made["flips"], note=note),
        results_file.row(
            f"{id}.score_rms", f"{what}: RMS change of the score", made["score_rms"], unit="logits"
        ),
        results_file.row(
            f"{id}.mask_rms", f"{what}: RMS change of the mask", made["mask_rms"], unit="logits"
        ),
    ]


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grids", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/recipes"), help="work of bench-recipes")
    parser.add_argument("--only-report", action="store_true", help="compute nothing, write what is there")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
