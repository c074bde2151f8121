"""Quantization-aware training: a network learns to answer on the integer grid what it answers in full precision.

Nothing but the rounding changes: the teacher is the RUN's own network, the scales are those of the calibration and
stay as they are, weights and biases move, and each step rounds them and lets the gradient through (straight-through
estimator; Jacob et al., CVPR 2018). What is learned is the teacher's verdict and mask, not the labels (Hinton et al.,
2015): where the teacher is wrong, the grid shall be wrong in the same way, for a flip is counted against the teacher.
Pixels near the mask's threshold and scores near the verdict's count most, because there they flip.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchao.quantization.pt2e.observer import ObserverBase, PerChannelMinMaxObserver

from quantize.data.framed import FramedSet
from quantize.ranges import LEVELS
from quantize.training.augmentation import centered
from quantize.training.batches import BalancedBatches

# How far from the threshold, in logits, an answer still counts for more than the floor.
NEAR_LOGITS = 1.0
VERDICT_FLOOR, PIXEL_FLOOR = 0.2, 0.02
HUBER_LOGITS = 0.5
WARMUP_SHARE = 0.05


@dataclass(frozen=True)
class Thresholds:
    """Of the RUN, in logits."""

    verdict: float
    mask: float


class FakeActivation(nn.Module):
    """Rounds a tensor to the grid; beyond the range no gradient flows."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale, self.zero_point = scale, zero_point

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, -LEVELS - 1, LEVELS)


class FakeWeight(nn.Module):
    """Rounds a weight to the grid, a scale for each output channel."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros_like(scale, dtype=torch.int32))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.fake_quantize_per_channel_affine(weight, self.scale, self.zero, 0, -LEVELS, LEVELS)


def with_fake_quant(prepared: fx.GraphModule) -> fx.GraphModule:
    """A copy of a calibrated graph that computes on the grid and can be trained."""
    graph = copy.deepcopy(prepared)
    made: dict[int, nn.Module] = {}  # tensors that share a scale share an observer
    observers = [
        (name, module)
        for name, module in graph.named_modules(remove_duplicate=False)
        if isinstance(module, ObserverBase)
    ]
    for name, observer in observers:
        if id(observer) not in made:
            scale, zero_point = observer.calculate_qparams()  # type: ignore[no-untyped-call]
            made[id(observer)] = (
                FakeWeight(scale.detach().float())
                if isinstance(observer, PerChannelMinMaxObserver)
                else FakeActivation(float(scale), int(zero_point))
            )
        setattr(graph, name, made[id(observer)])
    return graph


def distillation_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], thresholds: Thresholds
) -> Tensor:
    """How far verdict and mask logits (N x 1, N x 1 x h x w) are from the teacher's, near the thresholds above all."""
    near = VERDICT_FLOOR + torch.exp(-(teacher[0] - thresholds.verdict).abs() / NEAR_LOGITS)
    verdict = (near * _huber(student[0], teacher[0])).mean()
    odds = torch.sigmoid(teacher[1] - thresholds.mask)
    near = PIXEL_FLOOR + 4 * odds * (1 - odds)
    mask = (near * _huber(student[1], teacher[1])).sum() / near.sum()
    return verdict + mask


def _huber(student: Tensor, teacher: Tensor) -> Tensor:
    return functional.smooth_l1_loss(student, teacher, reduction="none", beta=HUBER_LOGITS)


class Tuner:
    """A quantization-aware training between two epochs.

    Args:
        student: from `with_fake_quant`, made for batches of `batches.batch_size`.
        teacher: the network in full precision, batch norm folded.
        rate: of Adam, as a share of each parameter's root mean square: depthwise kernels of 30 and pointwise ones of
            0.01 are steered by one number.
        steps: of the whole training; the rate follows a cosine over them after a short warm-up.
        time_limit_s: shortens it, 0: none.
    """

    def __init__(
        self,
        student: fx.GraphModule,
        teacher: nn.Module,
        batches: BalancedBatches,
        thresholds: Thresholds,
        *,
        rate: float,
        steps: int,
        time_limit_s: float,
        device: torch.device,
    ) -> None:
        self.student, self.teacher = student.to(device), teacher.to(device).eval()
        self.batches, self.thresholds, self.device = batches, thresholds, device
        self.steps, self.step = steps, 0
        self.time_limit_s, self.seconds = time_limit_s, 0.0
        groups = []
        for parameter in self.student.parameters():
            parameter.requires_grad_(True)
            size = float(parameter.detach().square().mean().sqrt())
            groups.append({"params": [parameter], "lr": 0.0, "base_rate": rate * max(size, 1e-3)})
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))

    def share(self) -> float:
        """How much of the training is done, 0..1, by steps or by time, whichever is further."""
        by_time = self.seconds / self.time_limit_s if self.time_limit_s else 0.0
        return min(1.0, max(self.step / self.steps, by_time))

    def epoch(self, index: int) -> float:
        """Train one epoch, or what the time allows of it; returns the mean loss."""
        losses = []
        for batch in self.batches.epoch(index):
            if self.share() >= 1:
                break
            began = time.monotonic()
            losses.append(self._learn(batch.images.contiguous()))
            self.seconds += time.monotonic() - began
            self.step += 1
        return sum(losses) / max(1, len(losses))

    def _learn(self, images: Tensor) -> float:
        warm = min(1.0, (self.step + 1) / max(1.0, WARMUP_SHARE * self.steps))
        factor = warm * 0.5 * (1 + math.cos(math.pi * self.share()))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_rate"] * factor
        with torch.no_grad():
            wanted = self.teacher(images)
        loss = distillation_loss(self.student(images), wanted, self.thresholds)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def distance(self, framed: FramedSet) -> float:
        """The loss on tiles as they are, such as those of `val`; a rest that fills no batch is left out."""
        size = self.batches.batch_size
        losses = []
        for start in range(0, len(framed) - size + 1, size):
            images = centered(framed.tiles[start : start + size].to(self.device))
            losses.append(
                float(distillation_loss(self.student(images), self.teacher(images), self.thresholds))
            )
        return sum(losses) / max(1, len(losses))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "batches": self.batches.state(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Take up an earlier `state`."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.batches.resume(state["batches"])
