"""Every knob of a training, with the defaults that ``edgeqc train`` uses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from quantize.training.augmentation import AugmentationConfig
from quantize.training.balance import BalanceConfig
from quantize.training.defects import DefectConfig
from quantize.training.losses import LossConfig


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Rates are AdamW's; a pretrained encoder gets ``encoder_rate``, everything else ``rate``.

    The rates follow a cosine after a warm-up of ``warmup_share``. ``time_limit_min`` (0: none) shortens the
    schedule on a slow machine: the cosine runs over whatever is further, epochs or time, so that a
    training that is cut short has still cooled down.

    ``frozen_blocks`` is how many of a pretrained encoder's first blocks do not learn. At the highest
    resolutions they cost a third of a step, and edges and grain look the same on every surface.

    An epoch shows as many tiles as there are, but at least ``epoch_tiles``: a small data set is shown more often,
    not trained less.

    ``accelerator``, ``devices`` and ``precision`` are Lightning Fabric's words; precision ``auto`` is bf16
    where the processor computes in it.
    """

    epochs: int = 40
    epoch_tiles: int = 512
    batch_size: int = 16
    rate: float = 3e-3
    encoder_rate: float = 3e-4
    weight_decay: float = 1e-2
    warmup_share: float = 0.05
    average_decay: float = 0.99
    clip_norm: float = 5.0
    frozen_blocks: int = 3
    time_limit_min: float = 15.0
    seed: int = 0
    accelerator: str = "auto"
    devices: str = "auto"
    precision: str = "auto"
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    defects: DefectConfig = field(default_factory=DefectConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, for ``run.json``."""
        return asdict(self)
