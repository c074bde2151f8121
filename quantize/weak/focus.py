"""Training the classifier: image labels, contrast, and after a while crops at the peaks of the evidence.

From the paper: the contrastive module and the guided cropping module. Ours: what is cropped. A crop around the
peak of a defective photograph is called defective only where the classifier is sure of the peak; a crop of a good
photograph is good wherever it is taken.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edge.preprocess import InputSpec
from edge.progress import step as show_step
from edge.samples import Sample
from quantize.metrics import sample_metrics
from quantize.pretrained import find_pretrained, initialise_encoder
from quantize.training.augmentation import Augmentation, AugmentationConfig, centered
from quantize.training.processor import depthwise_backward_in_float32, keep_freed_memory
from quantize.weak.classifier import (
    POOLINGS,
    Focus,
    FocusClassifier,
    PlainClassifier,
    contrastive_loss,
    evidence_of,
    pool,
)
from quantize.weak.extension import paint_at_random
from quantize.weak.photographs import Box, Photographs

WEIGHTS = "model.safetensors"
WIDTH = (
    1.0  # of MobileNetV2: the classifier is not shipped, and pretrained weights of this width are published
)
SURE = 0.0  # logit of a peak from which its crop keeps the label
WARMUP_SHARE = 0.05  # of the steps, in which the rates rise
CLIP_NORM = 5.0
BATCH = 16
STATISTICS_TILES = 96


@dataclass(frozen=True)
class FocusConfig:
    """How the classifier learns. ``plain`` is the baseline: labels alone, stride 16, mean pooling, no crops.

    Crops come after ``crops_after`` of the training and are half of each batch; ``crop_side`` is the range of
    their side as a share of the photograph's. ``painted`` is the share of good images with something painted over, so
    that the extension's paint is not taken for a defect.
    """

    epochs: int = 12
    time_limit_min: float = 4.5
    batch_size: int = 16
    rate: float = 3e-3
    encoder_rate: float = 3e-4
    weight_decay: float = 1e-2
    frozen_blocks: int = 3
    plain: bool = False
    stride: int = 4
    pooling: str = "lse"
    contrast: float = 0.1
    temperature: float = 0.2
    crops_after: float = 0.3
    crop_side: tuple[float, float] = (0.4, 0.7)
    painted: float = 0.3
    label_smoothing: float = 0.02
    seed: int = 0
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass(frozen=True)
class TrainedClassifier:
    """The classifier, the pooling that tells ``val`` apart best, and the logits (float32 N) of ``val``.

    ``pretrained`` is a sentence on where the encoder came from.
    """

    model: nn.Module
    pooling: str
    val_scores: NDArray[np.float32]
    epochs: int
    pretrained: str


def build_classifier(channels: int, config: FocusConfig) -> nn.Module:
    """The network of ``config`` for images of ``channels``."""
    return (
        PlainClassifier(WIDTH, channels) if config.plain else FocusClassifier(WIDTH, channels, config.stride)
    )


def train_from_labels(
    fabric: Fabric,
    train: Sequence[Sample],
    val: Sequence[Sample],
    spec: InputSpec,
    pretrained: str | None,
    config: FocusConfig,
) -> TrainedClassifier:
    """Train a classifier on the image labels of ``train``; ``pretrained`` as in ``quantize.training.job.Job``."""
    fabric.seed_everything(config.seed, verbose=False)
    model = build_classifier(spec.channels, config)
    train_set = Photographs(train, spec, "framing")
    val_set = Photographs(val, spec, "framing")
    encoder, sentence = None, "from scratch, as asked for"
    if pretrained != "":
        encoder, sentence = find_pretrained(model, pretrained)
        print(sentence, file=sys.stderr)
        if encoder is not None:
            order = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(config.seed))
            with show_step("reading the pretrained encoder"):
                initialise_encoder(
                    model,
                    encoder,
                    (centered(train_set.whole[part]) for part in order[:STATISTICS_TILES].split(BATCH)),
                )
    trainer = _Trainer(fabric, model, train_set, config, pretrained=encoder is not None)
    poolings = ("mean",) if config.plain else POOLINGS
    label = val_set.defective.numpy()
    with depthwise_backward_in_float32(model):
        while not trainer.done():
            said = trainer.epoch()
            evidence = evidence_of(fabric, model, val_set.whole)
            scores = {how: pool(evidence[:, None], how).numpy() for how in poolings}
            ap = {how: sample_metrics(label, score, 0.0)["ap"] for how, score in scores.items()}
            best = max(ap, key=lambda how: ap[how])
            print(f"{said}; val AP {ap[best]:.3f} ({best})", file=sys.stderr, flush=True)
    return TrainedClassifier(model.cpu(), best, scores[best], trainer.epochs_done, sentence)


class _Trainer:
    """A training between two epochs. AdamW; the rates follow a cosine over steps or time, whichever is further."""

    def __init__(
        self, fabric: Fabric, model: nn.Module, train: Photographs, config: FocusConfig, *, pretrained: bool
    ) -> None:
        self.fabric, self.config, self.data = fabric, config, train
        if fabric.device.type == "cpu":
            keep_freed_memory()
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        features = model.get_submodule("encoder.features")
        assert isinstance(features, nn.Sequential)
        frozen = config.frozen_blocks if pretrained else 0
        self.frozen = nn.ModuleList([*features][:frozen]).requires_grad_(False)
        slow = [p for n, p in model.named_parameters() if p.requires_grad and n.startswith("encoder.")]
        fast = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("encoder.")]
        groups = [
            {"params": slow, "lr": 0.0, "base_rate": config.encoder_rate if pretrained else config.rate},
            {"params": fast, "lr": 0.0, "base_rate": config.rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, foreach=True)
        self.model: Any
        self.optimizer: Any
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.steps = max(1, len(train) // config.batch_size)
        self.began = time.monotonic()
        self.epochs_done = 0
        self.share = 0.0

    def done(self) -> bool:
        return self.epochs_done >= self.config.epochs or (self.epochs_done > 0 and self.share >= 1)

    def epoch(self) -> str:
        """Train one epoch and say how it went."""
        config, fabric = self.config, self.fabric
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.epochs_done)
        batches = _Batches(self.data, config, generator)
        if not config.plain and self.share >= config.crops_after:
            batches.peaks = peaks(fabric, self.model, self.data)
        self.model.train()
        self.frozen.eval()
        began, total, count = time.monotonic(), 0.0, 0
        for step in range(self.epochs_done * self.steps, (self.epochs_done + 1) * self.steps):
            self._advance(step)
            if self.share >= 1 and count:
                break
            images, label, known = (part.to(fabric.device) for part in batches.draw())
            loss = _loss(self.model(images), label, known, config)
            self.optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            fabric.clip_gradients(self.model, self.optimizer, max_norm=CLIP_NORM, error_if_nonfinite=False)
            self.optimizer.step()
            total += float(loss.detach())
            count += 1
        self.epochs_done += 1
        speed = count * config.batch_size / (time.monotonic() - began)
        crops = "" if batches.peaks is None else ", half of them crops"
        return (
            f"classifier, epoch {self.epochs_done}/{config.epochs}: loss {total / count:.3f};"
            f" {speed:.0f} images/s{crops}"
        )

    def _advance(self, step: int) -> None:
        """Set the rates for ``step``; they end at a hundredth."""
        whole = self.config.epochs * self.steps
        limit_s = self.config.time_limit_min * 60
        by_time = (time.monotonic() - self.began) / limit_s if limit_s else 0.0
        self.share = min(1.0, max(step / whole, by_time))
        warm = min(1.0, (step + 1) / max(1.0, WARMUP_SHARE * whole))
        factor = warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.share)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_rate"] * factor


def _loss(answer: Focus, label: Tensor, known: Tensor, config: FocusConfig) -> Tensor:
    """BCE of the pooled evidence and the contrastive loss, over the images whose label is ``known`` (0/1 N)."""
    smooth = label * (1 - config.label_smoothing) + 0.5 * config.label_smoothing
    score = pool(answer.evidence, "mean" if config.plain else config.pooling)
    each = functional.binary_cross_entropy_with_logits(score, smooth, reduction="none")
    loss = (each * known).sum() / known.sum().clamp_min(1)
    if config.plain or not config.contrast:
        return loss
    sure = known > 0
    return loss + config.contrast * contrastive_loss(answer.embedding[sure], label[sure], config.temperature)


class _Batches:
    """Half defective, half good, each dealt without replacement; with ``peaks``, half of each are crops."""

    def __init__(self, data: Photographs, config: FocusConfig, generator: torch.Generator) -> None:
        self.data, self.config, self.generator = data, config, generator
        self.augment = Augmentation(config.augmentation, generator)
        self.peaks: Tensor | None = None
        self.painted = 0.0 if config.plain else config.painted
        self.decks: tuple[list[int], list[int]] = ([], [])

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input float32 N x C x H x W, labels and whether they hold, 0/1 N."""
        tiles, labels, known = [], [], []
        for place in range(self.config.batch_size):
            defective = place % 2
            index = self._deal(defective)
            sure = 1.0
            if self.peaks is None or place >= self.config.batch_size // 2:
                tiles.append(self.data.whole[index])
            else:
                y, x, peak = self.peaks[index].tolist()
                tiles.append(self.data.crop(index, self._box(y, x, guided=bool(defective))))
                sure = 1.0 if not defective or peak >= SURE else 0.0
            if not defective and self._draw() < self.painted:
                tiles[-1] = paint_at_random(tiles[-1], self.generator)
            labels.append(float(defective))
            known.append(sure)
        stacked = torch.stack(tiles)
        images, _ = self.augment(stacked, torch.zeros(len(tiles), 1, *stacked.shape[2:], dtype=torch.uint8))
        return images.contiguous(memory_format=torch.channels_last), torch.tensor(labels), torch.tensor(known)

    def _draw(self) -> float:
        return float(torch.rand(1, generator=self.generator))

    def _deal(self, defective: int) -> int:
        deck = self.decks[defective]
        if not deck:
            cards = torch.nonzero(self.data.defective == bool(defective)).flatten()
            deck.extend(cards[torch.randperm(len(cards), generator=self.generator)].tolist())
        return deck.pop()

    def _box(self, y: float, x: float, *, guided: bool) -> Box:
        low, high = self.config.crop_side
        draw = torch.rand(4, generator=self.generator).tolist()
        height = low + (high - low) * draw[0]
        width = min(1.0, height * (0.8 + 0.4 * draw[3]))
        if not guided:
            return draw[1] * (1 - height), draw[2] * (1 - width), height, width
        # The peak lies anywhere in the middle half of the crop: a fixed place would be learned.
        top = min(max(0.0, y - height * (0.25 + 0.5 * draw[1])), 1 - height)
        left = min(max(0.0, x - width * (0.25 + 0.5 * draw[2])), 1 - width)
        return top, left, height, width


def peaks(fabric: Fabric, model: nn.Module, data: Photographs) -> Tensor:
    """Where the evidence of each defective photograph is highest: y, x as shares, and the logit there, N x 3."""
    found = torch.zeros(len(data), 3)
    chosen = torch.nonzero(data.defective).flatten()
    evidence = evidence_of(fabric, model, data.whole[chosen])
    height, width = evidence.shape[1:]
    values, places = evidence.flatten(1).max(dim=1)
    rows, columns = places // width, places % width
    found[chosen] = torch.stack([(rows + 0.5) / height, (columns + 0.5) / width, values], dim=1)
    return found


def save_classifier(folder: Path, trained: TrainedClassifier) -> None:
    """Write the weights into ``folder``."""
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in trained.model.state_dict().items()}
    save_file(state, folder / WEIGHTS)


def load_classifier(folder: Path, channels: int, config: FocusConfig) -> nn.Module:
    """The classifier of ``save_classifier``, in eval mode on the CPU."""
    from safetensors.torch import load_file

    model = build_classifier(channels, config)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[no-any-return,call-overload]
