"""Sizes up to which an operation was seen on the Edge TPU, and from which it was seen on the CPU.

The compiler does not publish its limits. What lies between two sightings is unknown, and is said to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from targets.edgetpu_lint.evidence import (
    DECODER_INT8,
    DEEP,
    DEEPLAB,
    GABOR,
    LONG_SEQUENCE,
    MOBILENET,
    ONE_SUBGRAPH,
    POOLED,
    RESHAPED,
    RESIZED,
    SEQUENCE,
    SOFT_ARGMAX,
    TABLE,
    WIDE,
    Evidence,
    Knowledge,
    everything,
)


@dataclass(frozen=True)
class Limit:
    """Sightings of one size.

    Attributes:
        what: the size's name.
        mapped: sizes that were mapped, each with its witness.
        on_cpu: sizes that were not, for no other reason.
    """

    what: str
    mapped: Sequence[tuple[int, Evidence]]
    on_cpu: Sequence[tuple[int, Evidence]] = ()

    def place(self, size: int, knowledge: Knowledge = everything) -> tuple[bool | None, Evidence | None]:
        """Mapped (True), on the CPU (False) or unknown (None), and the nearest witness."""
        for seen, evidence in sorted(self.mapped, key=lambda sight: sight[0]):
            if size <= seen and knowledge(evidence):
                return True, evidence
        for seen, evidence in sorted(self.on_cpu, key=lambda sight: -sight[0]):
            if size >= seen and knowledge(evidence):
                return False, evidence
        return None, None

    def largest_mapped(self, knowledge: Knowledge = everything) -> int:
        """The largest size that was seen mapped, 0 where none was."""
        return max((seen for seen, evidence in self.mapped if knowledge(evidence)), default=0)


# Of any operation: the first convolution of a 721x1281 frame makes 361x641x48.
ACTIVATION = Limit(
    "elements in one tensor",
    [
        (361 * 641 * 48, DECODER_INT8),
        (64 * 64 * 525, WIDE),
        (128 * 128 * 32, DEEP),
        (128 * 128 * 8, GABOR),
    ],
)
# The table says 16,000; one of 128x128 was mapped.
SOFTMAX = Limit("elements", [(16_000, TABLE), (128 * 128, SOFT_ARGMAX)], [(16_001, TABLE)])
# 33x33x19 onto itself, 64x64x32 to 128x128x32. Not: 33x33x19 to 513x513x19, 256x256x32 to 512x512x32.
RESIZE = Limit(
    "elements",
    [(33 * 33 * 19, DEEPLAB), (128 * 128 * 32, RESIZED)],
    [(513 * 513 * 19, DEEPLAB), (512 * 512 * 32, RESIZED)],
)
# In one log the first RESHAPE that is not mapped belongs to the smallest head above 32x32x255; other networks'
# larger ones are mapped. "Certain reshapes might not be mapped for large tensor sizes", says the table.
RESHAPE = Limit(
    "elements",
    [(1001, MOBILENET), (9504, POOLED), (128 * 128, SOFT_ARGMAX), (32 * 32 * 255, RESHAPED)],
)
# The mean over 64x128 was mapped, the one over 256x128 was not.
MEAN = Limit("positions under one mean", [(64 * 128, ONE_SUBGRAPH)], [(256 * 128, ONE_SUBGRAPH)])
# 28 features were mapped, 900 compiled; 1,000 did not.
SEQUENCE_FEATURES = Limit("features", [(28, SEQUENCE), (900, LONG_SEQUENCE)], [(1000, LONG_SEQUENCE)])
