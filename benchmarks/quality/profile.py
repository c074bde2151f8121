"""Where a training step's time goes: `small` at 256 x 256, as `edgeqc train` sets it up, on random images.

Run by `make bench-quality` beside the `speed` row, in a process of its own; prints one JSON object. Nothing else
should run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from quantize.models import build
from quantize.training.config import TrainingConfig
from quantize.training.fit import _frozen
from quantize.training.losses import Truth, task_losses
from quantize.training.processor import depthwise_backward_in_float32, keep_freed_memory

SIDE_PX = 256
TIMED_STEPS = 8
# What the profiler calls an operation -> what people call it.
KINDS = {
    "convolution_backward": "convolutions, backward",
    "mkldnn_convolution": "convolutions, forward",
    "native_batch_norm": "batch norm, forward",
    "native_batch_norm_backward": "batch norm, backward",
    "copy_": "copies between bf16 and fp32",
    "clamp": "ReLU6, forward",
    "hardtanh_backward": "ReLU6, backward",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    keep_freed_memory()
    torch.manual_seed(0)
    frozen = TrainingConfig().frozen_blocks
    step, _ = make_step(frozen)
    shares = profile(step)
    result: dict[str, Any] = {
        "images_per_s": {
            "as trained": rate(step),
            "with torch.compile": rate(make_step(frozen, compiled=True)[0]),
            "the whole encoder frozen": rate(make_step(99)[0]),
        },
        "shares": shares,
    }
    step, parameters = make_step(frozen)
    result["parameters"] = parameters
    print(json.dumps(result))


def make_step(frozen_blocks: int, *, compiled: bool = False) -> tuple[Callable[[], None], int]:
    """A function that makes one step of the training, and how many parameters it trains."""
    batch = TrainingConfig().batch_size
    model: Any = build({"name": "sample-centric", "size": "small", "channels": 1})
    model = model.to(memory_format=torch.channels_last).train()
    _frozen(model, frozen_blocks).eval()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, foreach=True)
    images = torch.randn(batch, 1, SIDE_PX, SIDE_PX).contiguous(memory_format=torch.channels_last)
    target = (torch.rand(batch, 1, SIDE_PX, SIDE_PX) > 0.95).float()
    defective = (torch.arange(batch) % 2).float()
    truth = Truth(defective, target, torch.zeros_like(target), torch.ones(batch))
    network = torch.compile(model) if compiled else model
    config = TrainingConfig().loss
    stack = contextlib.ExitStack()
    stack.enter_context(depthwise_backward_in_float32(model))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = network(images)
        losses, _ = task_losses(output, truth, config)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()

    step.keep = stack  # type: ignore[attr-defined]
    return step, sum(parameter.numel() for parameter in learned)


def rate(step: Callable[[], None]) -> float:
    """Images per second, median over steps after two to warm up."""
    seconds = []
    for index in range(TIMED_STEPS + 2):
        began = time.perf_counter()
        step()
        if index >= 2:
            seconds.append(time.perf_counter() - began)
    return TrainingConfig().batch_size / statistics.median(seconds)


def profile(step: Callable[[], None]) -> dict[str, float]:
    """Share of the time in each kind of operation, the largest first; the rest as `other`."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(3):
            step()
    spent: dict[str, float] = {}
    for event in found.key_averages():
        kind = KINDS.get(event.key.removeprefix("aten::"), "other")
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: value / total for kind, value in sorted(spent.items(), key=lambda item: -item[1])}


if __name__ == "__main__":
    main()
