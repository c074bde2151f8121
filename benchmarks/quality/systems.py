"""The rows of the table: what is trained, and what each is compared with."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass

# Equal steps make rows comparable, so no training here is shortened by a clock: about ten minutes on a core.
EPOCHS = 16
SEEDS = (0, 1, 2)
TIME_LIMIT = ("--time-limit-min", "0")

BASELINE = "baseline"
DEFAULT = "sample-centric"


@dataclass(frozen=True)
class System:
    """A row: the words that `edgeqc train` gets besides data, output, seed and epochs.

    `compared_with` are the ids of the rows that it is judged against. `epochs`, where given, is its own. A row
    that is not `made_by_train` is in the table as `not run` until there is a record of it.
    """

    id: str
    what: str
    words: tuple[str, ...] = ()
    compared_with: tuple[str, ...] = (BASELINE,)
    epochs: int | None = None
    made_by_train: bool = True


@dataclass(frozen=True)
class Plan:
    """One training."""

    system: System
    seed: int
    epochs: int

    @property
    def words(self) -> tuple[str, ...]:
        """Everything that decides the training but the data: what the run is known by."""
        return (*self.system.words, "--seed", str(self.seed), "--epochs", str(self.epochs), *TIME_LIMIT)

    @property
    def label(self) -> str:
        """Name of the run's files: another list of words has another one."""
        digest = hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:8]
        return f"{self.system.id}-seed{self.seed}-{digest}"


def systems(balance: str, sample_gradient: float) -> list[System]:
    """Every row. The arguments are the defaults of `edgeqc train`: an ablation is what they are not."""
    both = (BASELINE, DEFAULT)
    shares = [share for share in (0, 1) if share != sample_gradient]
    balances = [kind for kind in ("gradnorm", "fixed") if kind != balance]
    return [
        System(BASELINE, "pixel-only baseline", ("--model", "pixel-only"), ()),
        System(DEFAULT, "sample-centric, the default recipe"),
        *(
            System(f"gradient-{share}", f"sample gradient {share}", ("--sample-gradient", str(share)), both)
            for share in shares
        ),
        *(System(f"balance-{kind}", f"balance {kind}", ("--balance", kind), both) for kind in balances),
        System(
            "synthetic",
            "synthetic defects on a quarter of the good tiles",
            ("--synthetic-defects", "0.25"),
            both,
        ),
        System("pixel-confidence", "pixel-confidence", ("--model", "pixel-confidence"), both),
        System("weak", "weak labels only", ("--weak",), (*both, PLAIN_CAM)),
        # The classifier of image labels alone, its activation map as the mask: no verb makes it.
        System(PLAIN_CAM, "plain CAM", (), (), made_by_train=False),
    ]


# The bar on speed names small, 256 pixels and two cores; other rows may choose their own input size. The first epoch
# warms up and is left out.
SPEED = System("speed", "sample-centric small at 256 px", ("--size", "small", "--input-size", "256"), (), 5)
PLAIN_CAM = "plain-cam"


def default_systems() -> list[System]:
    """Every row, beside the defaults that the code has now."""
    from quantize.models.sample_centric import build
    from quantize.training.config import TrainingConfig

    share = inspect.signature(build).parameters["sample_gradient"].default
    return systems(TrainingConfig().balance.kind, share)
