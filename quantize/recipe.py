"""How a network is put on the integer grid: a choice that needs no SDK to be named."""

from __future__ import annotations

from dataclasses import dataclass

# How ranges are chosen, see `quantize.ranges`. "mse" is nearest to full precision on parts that were held out, in
# scores and in masks (`make bench-grids`); "minmax" clips nothing.
RANGES = ("mse", "minmax", "percentile")
# How weights are rounded, see `quantize.rounding`.
ROUNDINGS = ("second-order", "nearest")
# Largest weight in steps. Products of two int8 are added in int16 by processors that have no instruction for it (x86-64
# without VNNI): with weights of half the range no pair of them overflows.
WEIGHT_LEVELS, NARROW_WEIGHT_LEVELS = 127, 63
# What copies of channels may cost where the plain grid misses, see `quantize.widening`.
WIDENINGS = (0.25, 0.6)


@dataclass(frozen=True)
class GridRecipe:
    """One way onto the grid.

    Attributes:
        ranges: one of `RANGES`.
        rounding: one of `ROUNDINGS`.
        one_sided: tensors that are never negative use the whole grid (zero point -128) where they can.
        equalised: channels fill the grid of their tensor, see `quantize.equalisation`.
        tie_free: scales are such that all runtimes round alike, see `quantize.requantization`.
        weight_levels: the largest weight in steps, `WEIGHT_LEVELS` or `NARROW_WEIGHT_LEVELS`.
        widening: what copies of channels may cost, as a share of the multiply-accumulates; 0: none are made.
    """

    ranges: str = RANGES[0]
    rounding: str = ROUNDINGS[0]
    one_sided: bool = True
    equalised: bool = True
    tie_free: bool = True
    weight_levels: int = WEIGHT_LEVELS
    widening: float = 0.0
