"""The training loop, on Lightning Fabric: one process on a CPU, a GPU, or several of them."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from edge.errors import BackendUnavailableError, InputError
from edge.progress import progress as show_progress
from quantize.data.framed import FramedSet
from quantize.models.outputs import TrainingOutput
from quantize.training.balance import Balance
from quantize.training.batches import BalancedBatches, Batch
from quantize.training.checkpoint import Checkpoint
from quantize.training.config import TrainingConfig
from quantize.training.losses import task_losses
from quantize.training.processor import depthwise_backward_in_float32, keep_freed_memory
from quantize.training.validation import validate

State = dict[str, Tensor]


@dataclass
class Progress:
    """Where a training stands: what a resume needs besides the tensors."""

    epoch: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted:
    """The best averaged weights, how the training went, and what it ran on."""

    state: State
    progress: Progress
    ran_on: dict[str, Any]


def make_fabric(config: TrainingConfig) -> Fabric:
    """Fabric as configured; precision ``auto`` is bf16 where the processor computes in it."""
    devices: int | str = int(config.devices) if config.devices.isdigit() else config.devices
    accelerator = config.accelerator
    if accelerator in ("auto", "cpu") and not torch.cuda.is_available():
        accelerator, devices = "cpu", 1 if devices == "auto" else devices
    precision: Any = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if _computes_bf16(accelerator) else "32-true"
    asked = f"accelerator {accelerator}, devices {devices}, precision {precision}"
    try:
        return Fabric(accelerator=accelerator, devices=devices, precision=precision)
    except (ValueError, TypeError) as error:
        raise InputError(f"Lightning Fabric refuses {asked}", got=_first_line(error)) from error
    except RuntimeError as error:  # Fabric's word for hardware that is not there
        raise BackendUnavailableError(f"there is no {asked} here", got=_first_line(error)) from error


def fit(
    fabric: Fabric,
    model: nn.Module,
    train: FramedSet,
    val: FramedSet,
    config: TrainingConfig,
    *,
    pretrained: bool,
    checkpoint: Checkpoint,
) -> Fitted:
    """Train ``model`` and return the averaged weights of the best epoch on ``val``.

    ``pretrained`` says that the encoder starts from foreign weights and learns slowly. Goes on from
    ``checkpoint`` where there is a state, and leaves one after every epoch. With 0 epochs the weights stay.
    """
    if not config.epochs:
        checkpoint.check()  # another training that is not done must not be taken for this one
        return Fitted(model.state_dict(), Progress(best_epoch=0), _ran_on(fabric))
    trainer = _Trainer(fabric, model, train, val, config, pretrained)
    if checkpoint.check():
        trainer.resume(checkpoint.load())
    elif fabric.is_global_zero:
        checkpoint.begin()
    with trainer.ready():
        while not trainer.done():
            trainer.epoch()
            if fabric.is_global_zero:
                checkpoint.save(trainer.state())
            fabric.barrier()
    return Fitted(trainer.best, trainer.progress, _ran_on(fabric))


class _Trainer:
    """A training between two epochs."""

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        train: FramedSet,
        val: FramedSet,
        config: TrainingConfig,
        pretrained: bool,
    ) -> None:
        self.fabric, self.val, self.config = fabric, val, config
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(model).to(fabric.device).eval().requires_grad_(False)
        self.frozen = _frozen(model, config.frozen_blocks if pretrained else 0)
        optimizer = torch.optim.AdamW(_groups(model, config, pretrained), foreach=True)
        self.model: Any
        self.optimizer: Any
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.batches = BalancedBatches(
            train,
            batch_size=config.batch_size,
            epoch_tiles=config.epoch_tiles,
            augmentation=config.augmentation,
            defects=config.defects,
            centers=config.loss.center > 0,
            seed=config.seed,
            device=fabric.device,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        self.schedule = _Schedule(config, self.batches.steps)
        self.balance = Balance(config.balance)
        self.progress = Progress()
        self.best: State = {}

    @contextmanager
    def ready(self) -> Iterator[None]:
        """While the loop runs, a CPU is set up for it."""
        if self.fabric.device.type != "cpu":
            yield
            return
        keep_freed_memory()
        with depthwise_backward_in_float32(self.model.module):
            yield

    def done(self) -> bool:
        steps = self.progress.epoch * self.batches.steps
        return (
            self.progress.epoch >= self.config.epochs
            or self.schedule.share(steps, self.progress.seconds) >= 1
        )

    def state(self) -> dict[str, Any]:
        """Everything that a resume needs, for ``Checkpoint.save``."""
        return {
            "model": self.model.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_state": self.best,
            "balance": self.balance.state(),
            "batches": self.batches.state(),
            "progress": vars(self.progress).copy(),
        }

    def resume(self, saved: dict[str, Any]) -> None:
        """Take up an earlier ``state``."""
        self.model.module.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.best, self.progress = saved["best_state"], Progress(**saved["progress"])
        self.balance = Balance(self.config.balance, **saved["balance"])
        self.batches.resume(saved["batches"])
        _say(self.fabric, f"resuming after epoch {self.progress.epoch} of {self.config.epochs}")

    def epoch(self) -> None:
        """Train one epoch, validate the averaged weights, and say how it went."""
        fabric, config, progress = self.fabric, self.config, self.progress
        began = time.monotonic()
        self.model.train()
        self.frozen.eval()
        fabric.seed_everything(config.seed + progress.epoch, verbose=False)
        clock = _Clock()
        losses: dict[str, Tensor] = {}
        what = f"epoch {progress.epoch + 1}/{config.epochs}"
        batches = clock.timed(self.batches.epoch(progress.epoch))
        if sys.stderr.isatty():  # a log gets one line for each epoch
            batches = show_progress(batches, what, self.batches.steps)
        steps = 0
        for step, batch in enumerate(batches, progress.epoch * self.batches.steps):
            # Several processes must agree on the rate, and their clocks do not: they look once an epoch.
            seconds = progress.seconds + (time.monotonic() - began if fabric.world_size == 1 else 0.0)
            if steps and self.schedule.share(step, seconds) >= 1:
                break  # the time is up in the middle of an epoch
            self.schedule.apply(self.optimizer, step, seconds)
            steps += 1
            self._step(batch, step, self.schedule.share(step, seconds), losses)
            _average(self.average, self.model.module, config.average_decay, step)
        trained_s = time.monotonic() - began
        row = {"epoch": float(progress.epoch + 1)}
        row |= {f"loss_{name}": float(total) / steps for name, total in losses.items()}
        row |= {f"weight_{name}": weight for name, weight in self.balance.weights.items()}
        row |= validate(fabric, self.average, self.val)
        row["images_per_s"] = steps * config.batch_size * fabric.world_size / trained_s
        row["data_share"] = clock.waited_s / trained_s
        row["seconds"] = float(fabric.broadcast(time.monotonic() - began))
        progress.epoch += 1
        progress.seconds += row["seconds"]
        progress.history.append(row)
        if row["selection"] >= progress.best:
            progress.best, progress.best_epoch = row["selection"], progress.epoch
            self.best = {
                name: kept.detach().cpu().clone() for name, kept in self.average.state_dict().items()
            }
        _say(fabric, _line(what, row, self.schedule, progress, self.batches.steps))

    def _step(self, batch: Batch, step: int, done: float, totals: dict[str, Tensor]) -> None:
        """One step of the optimizer; adds the parts of the loss to ``totals``."""
        fabric, config = self.fabric, self.config
        self.balance.advance(done)
        if self.balance.due(step):
            # Fabric lets nobody but itself run backwards through a module that it set up.
            with fabric.autocast():
                output = TrainingOutput(*self.model.module(batch.images))
            self.balance.observe(fabric, self.model.module, task_losses(output, batch.truth, config.loss)[0])
        # A network of the user's own answers `(defect, mask)` in training mode too.
        output = TrainingOutput(*self.model(batch.images))
        losses, parts = task_losses(output, batch.truth, config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        fabric.backward(self.balance.total(losses))
        if config.clip_norm:
            fabric.clip_gradients(
                self.model, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        if output.defect is not None:
            self.batches.learn(batch.tiles, output.defect.squeeze(1))
        for name, value in parts.items():
            totals[name] = totals.get(name, torch.zeros((), device=value.device)) + value


def _frozen(model: nn.Module, blocks: int) -> nn.ModuleList:
    """The encoder's first ``blocks``, without gradients; their batch norms have to stay in eval mode."""
    features = model.get_submodule("encoder.features") if blocks else nn.Sequential()
    assert isinstance(features, nn.Sequential)
    return nn.ModuleList([*features][:blocks]).requires_grad_(False)


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and batch statistics; short at first, so that it does not lag."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for kept, now in zip(average.state_dict().values(), model.state_dict().values()):
        if kept.dtype.is_floating_point:
            kept.lerp_(now, weight)
        else:
            kept.copy_(now)


class _Schedule:
    """Learning rate as a share of each group's own: linear warm-up, then a cosine down to a hundredth."""

    def __init__(self, config: TrainingConfig, steps_per_epoch: int) -> None:
        self.total = config.epochs * steps_per_epoch
        self.limit_s = config.time_limit_min * 60
        self.warmup = config.warmup_share

    def share(self, step: int, seconds: float) -> float:
        """How much of the training is done, 0..1, by steps or by time, whichever is further."""
        by_time = seconds / self.limit_s if self.limit_s else 0.0
        return min(1.0, max(step / self.total, by_time))

    def apply(self, optimizer: Any, step: int, seconds: float) -> None:
        done = self.share(step, seconds)
        # The warm-up counts steps alone: a slow first epoch must not skip it.
        warm = min(1.0, (step + 1) / max(1.0, self.warmup * self.total))
        factor = warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = group["base_rate"] * factor


class _Clock:
    """Makes each batch while the one before it is learned from, and counts what the training waits all the same."""

    def __init__(self) -> None:
        self.waited_s = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
            ahead = worker.submit(next, batches, None)
            while True:
                began = time.monotonic()
                batch = ahead.result()
                self.waited_s += time.monotonic() - began
                if batch is None:
                    return
                ahead = worker.submit(next, batches, None)
                yield batch


def _groups(model: nn.Module, config: TrainingConfig, pretrained: bool) -> list[dict[str, Any]]:
    """Parameter groups: encoder or not, weight decay (kernels, depthwise ones too) or none (the rest)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        slow = pretrained and name.startswith("encoder.")
        groups.setdefault((slow, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": 0.0,
            "base_rate": config.encoder_rate if slow else config.rate,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (slow, decays), parameters in groups.items()
    ]


def _computes_bf16(accelerator: str) -> bool:
    """Whether bf16 is computed and not emulated: emulation is slower than fp32."""
    if accelerator == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _line(what: str, row: dict[str, float], schedule: _Schedule, state: Progress, steps: int) -> str:
    done = schedule.share(state.epoch * steps, state.seconds)
    losses = ", ".join(
        f"{name.removeprefix('loss_')} {value:.3f}" for name, value in row.items() if name.startswith("loss_")
    )
    left_min = state.seconds * (1 - done) / max(done, 1e-9) / 60
    return (
        f"{what}: val AP {row['ap']:.3f}, Seg_mIoU {row['seg_miou']:.3f}, mask IoU {row['mask_iou']:.3f}"
        f"{' (best)' if state.best_epoch == state.epoch else ''}; loss {losses};"
        f" {row['images_per_s']:.0f} images/s, {100 * row['data_share']:.0f} % of it waiting for data;"
        f" {left_min:.1f} min left"
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _say(fabric: Fabric, text: str) -> None:
    if fabric.is_global_zero:
        print(text, file=sys.stderr, flush=True)


def _ran_on(fabric: Fabric) -> dict[str, Any]:
    return {
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "precision": str(fabric._precision.precision),
        "threads": torch.get_num_threads(),
    }
