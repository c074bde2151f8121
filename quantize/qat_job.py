"""`edgeqc train --qat RUN0` from end to end: grid, tuning, and a RUN whose reference is still RUN0's network."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from edge.errors import InputError
from edge.folders import new_folder, refuse_existing, write_json
from edge.progress import step
from quantize.data.dataset import open_dataset
from quantize.data.framed import FramedSet, frame_samples
from quantize.grid import CalibratedGrid, calibrate
from quantize.models.batch_norm import fold_batch_norm
from quantize.qat import Thresholds, Tuner, with_fake_quant
from quantize.quiet import quiet
from quantize.recipe import WIDENINGS, GridRecipe
from quantize.run import GRID, METRICS, RUN, WEIGHTS, Run, open_run
from quantize.training.augmentation import AugmentationConfig, centered
from quantize.training.batches import BalancedBatches
from quantize.training.checkpoint import Checkpoint
from quantize.training.config import TrainingConfig
from quantize.training.defects import DefectConfig
from quantize.training.fit import make_fabric
from quantize.training.processor import keep_freed_memory
from quantize.tuned_grid import WEIGHT, grid_state, save_grid, with_grid_state

CALIBRATION_TILES = 128


@dataclass(frozen=True)
class QatConfig:
    """How to tune.

    Attributes:
        rate: a share of each parameter's own size for a step of Adam.
        widening: of the grid that is tuned, see `quantize.recipe`.
    """

    epochs: int = 8
    epoch_tiles: int = 512
    batch_size: int = 8
    rate: float = 3e-5
    widening: float = WIDENINGS[0]
    time_limit_min: float = 15.0
    seed: int = 0
    accelerator: str = "auto"


@dataclass(frozen=True)
class Tuned:
    """The RUN folder and how far its grid was, and is, from full precision on `val` (`quantize.qat`)."""

    run: Path
    before: float
    after: float
    seconds: float


def train_qat(source: Path, data: Path, out: Path, config: QatConfig) -> Tuned:
    """Tune the grid of RUN `source` on split `train` of `data`, and write RUN `out`.

    `out` has the network, thresholds and metrics of `source`, and `grid.safetensors` beside them, which every target
    lowers. The epoch that is nearest to full precision on `val` is kept, the untuned grid where none is nearer.
    Goes on from where an interrupted one ended.

    Raises:
        InputError: bad data, an existing `out`, other channels than the network's.
    """
    refuse_existing(out)
    run = open_run(source)
    if run.tuned_grid:
        raise InputError(
            f"{source} is tuned already",
            next_step="name the RUN that it was tuned from, which it says in run.json",
        )
    device = make_fabric(TrainingConfig(accelerator=config.accelerator, precision="32-true")).device
    dataset = open_dataset(data)
    train = frame_samples(dataset.split("train"), run.input, run.framing)
    val = frame_samples(dataset.split("val"), run.input, run.framing)
    shape = (run.input.channels, run.input.height, run.input.width)
    teacher = fold_batch_norm(run.load_model(), shape)
    checkpoint = Checkpoint(out, {"qat": vars(config), "checkpoint": run.digest, "data": dataset.digest})
    resumed = checkpoint.load() if checkpoint.check() else None
    with quiet():
        grid = calibrate(
            teacher,
            _calibration(train, config.seed).split(1),
            input_shape=shape,
            recipe=GridRecipe(widening=config.widening),
        )
        with step("capturing the network for batches"):
            student = with_grid_state(teacher, shape, grid_state(grid.prepared), config.batch_size)
    batches = BalancedBatches(
        train,
        batch_size=config.batch_size,
        epoch_tiles=config.epoch_tiles,
        augmentation=AugmentationConfig(),
        defects=DefectConfig(),
        seed=config.seed,
        device=device,
    )
    if device.type == "cpu":
        keep_freed_memory()
    tuner = Tuner(
        with_fake_quant(student),
        teacher,
        batches,
        Thresholds(run.decision.threshold, run.decision.mask_threshold),
        rate=config.rate,
        steps=config.epochs * batches.steps,
        time_limit_s=60 * config.time_limit_min,
        device=device,
    )
    history, best = _tune(tuner, val, checkpoint, resumed)
    with new_folder(out) as staging:
        _write(staging, run, grid, best, {"config": vars(config), "of": run.name, "history": history})
    checkpoint.remove()
    distances = [row["val_distance"] for row in history]
    return Tuned(out, distances[0], min(distances), tuner.seconds)


def _calibration(train: FramedSet, seed: int) -> Tensor:
    """Tiles that set the ranges, as many defective ones as good ones where there are so many."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [torch.nonzero(train.defective == kind).flatten() for kind in (False, True)]
    shuffled = [kind[torch.randperm(len(kind), generator=generator)] for kind in kinds]
    return centered(train.tiles[torch.cat([kind[: CALIBRATION_TILES // 2] for kind in shuffled])])


def _tune(
    tuner: Tuner, val: FramedSet, checkpoint: Checkpoint, resumed: dict[str, Any] | None
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Epochs until steps or time are used up: what was seen after each, and the parameters of the nearest one."""
    if resumed is None:
        history = [{"epoch": 0.0, "val_distance": tuner.distance(val)}]
        best = _parameters(tuner.student)
        checkpoint.begin()
        print(f"before: {history[0]['val_distance']:.4f} from full precision on val", file=sys.stderr)
    else:
        history, best = resumed["history"], resumed["best"]
        tuner.resume(resumed["tuner"])
    while tuner.share() < 1:
        loss = tuner.epoch(len(history) - 1)
        row = {"epoch": float(len(history)), "loss": loss, "val_distance": tuner.distance(val)}
        nearest = row["val_distance"] < min(seen["val_distance"] for seen in history)
        history.append(row)
        if nearest:
            best = _parameters(tuner.student)
        checkpoint.save({"history": history, "best": best, "tuner": tuner.state()})
        print(
            f"epoch {len(history) - 1}: {row['val_distance']:.4f} from full precision on val"
            f"{' (nearest)' if nearest else ''}, loss {loss:.4f},"
            f" {tuner.step * tuner.batches.batch_size / tuner.seconds:.0f} images/s, {100 * tuner.share():.0f} % done",
            file=sys.stderr,
            flush=True,
        )
    return history, best


def _parameters(student: fx.GraphModule) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in student.named_parameters()}


def _write(
    folder: Path, run: Run, grid: CalibratedGrid, parameters: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    state = grid_state(grid.prepared) | {WEIGHT + name: value for name, value in parameters.items()}
    save_grid(folder / GRID, state, grid.count)
    for name in (WEIGHTS, METRICS):
        shutil.copyfile(run.path / name, folder / name)
    write_json(folder / RUN, {**run.facts, "qat": facts})
