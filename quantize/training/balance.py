"""How much each task counts: the verdict and the mask pull at the same encoder, and neither may drown the other.

``gradnorm`` (Chen et al., ICML 2018; the sample-centric paper, arXiv 2510.13226, speaks of gradient
normalisation): both tasks' gradients at the encoder's last layer are held at equal norm, and the task that learns
more slowly gets more. ``linear`` (SegDecNet's schedule) goes from the mask to the verdict, ``fixed`` stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

KINDS = ("gradnorm", "fixed", "linear")
TASKS = ("mask", "sample")


@dataclass(frozen=True)
class BalanceConfig:
    """``restoring`` is GradNorm's alpha: 0 asks for equal norms, more of it for equal training rates."""

    kind: str = "gradnorm"
    restoring: float = 0.5
    every_steps: int = 16
    smoothing: float = 0.9
    lowest: float = 0.2


@dataclass
class Balance:
    """Weights of the two tasks, which always sum to 2.

    GradNorm's weights solve ``w_i g_i = mean(w g) r_i^alpha`` (its equation 1 and 2), where ``g_i`` is the norm of
    task i's gradient and ``r_i`` its loss, relative to the first one, over the mean of the tasks'. The paper
    walks there with an optimizer of its own; with two tasks the solution is at hand, so ours is computed from
    smoothed ``g_i`` and ``r_i``, every few steps.
    """

    config: BalanceConfig
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 1.0))
    first: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)

    def due(self, step: int) -> bool:
        """Whether this step's gradients should be looked at with `observe`."""
        return self.config.kind == "gradnorm" and step % self.config.every_steps == 0

    def observe(self, fabric: Fabric, model: nn.Module, losses: dict[str, Tensor]) -> None:
        """Set the weights by the gradients of ``losses``, which have their graph and come from ``model``.

        A task that is absent, or does not reach the encoder, leaves nothing to balance.
        """
        if len(losses) < len(TASKS):
            return
        shared = last_shared_weight(model)
        norms = {}
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
            if gradient is None:
                return
            norms[name] = _mean_of_processes(fabric, gradient.float().norm())
        self._solve(norms, {name: _mean_of_processes(fabric, loss.detach()) for name, loss in losses.items()})

    def advance(self, done: float) -> None:
        """Move a schedule to ``done`` (0..1) of the training."""
        if self.config.kind == "linear":
            self.weights = {"mask": 2 - 2 * done, "sample": 2 * done}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum."""
        weighted = [self.weights[name] * loss for name, loss in losses.items()]
        return torch.stack(weighted).sum()

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "config"}

    def _solve(self, norms: dict[str, float], losses: dict[str, float]) -> None:
        if not self.first:
            self.first = losses
        for name in TASKS:
            for kept, now in ((self.norms, norms), (self.losses, losses)):
                old = kept.get(name, now[name])
                kept[name] = self.config.smoothing * old + (1 - self.config.smoothing) * now[name]
        rates = {name: self.losses[name] / max(self.first[name], 1e-12) for name in TASKS}
        mean = sum(rates.values()) / len(TASKS)
        raw = {
            name: (rates[name] / max(mean, 1e-12)) ** self.config.restoring / max(self.norms[name], 1e-12)
            for name in TASKS
        }
        scale = len(TASKS) / sum(raw.values())
        low, high = self.config.lowest, len(TASKS) - self.config.lowest
        self.weights = {name: min(max(value * scale, low), high) for name, value in raw.items()}


def _mean_of_processes(fabric: Fabric, value: Tensor) -> float:
    mean = fabric.all_reduce(value)
    assert isinstance(mean, Tensor)
    return float(mean)


def last_shared_weight(model: nn.Module) -> Tensor:
    """The kernel of the encoder's last convolution: the last thing that both tasks share."""
    return _kernels(model)[-1]


def has_encoder(model: nn.Module) -> bool:
    """Whether there is a submodule ``encoder`` with convolutions for GradNorm to look at."""
    return bool(_kernels(model))


def _kernels(model: nn.Module) -> list[Tensor]:
    encoder = getattr(model, "encoder", None)
    parts = encoder.modules() if isinstance(encoder, nn.Module) else ()
    return [module.weight for module in parts if isinstance(module, nn.Conv2d)]
