"""Requantization without ties: the law itself, and that scales which follow it make all ways of rounding one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
nn = torch.nn
F = torch.nn.functional

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from quantize.grid import INPUT_SCALE, calibrate  # noqa: E402
from quantize.operations import OWN_SCALE, PRODUCTS, SUMS  # noqa: E402
from quantize.recipe import GridRecipe  # noqa: E402
from quantize.requantization import (  # noqa: E402
    LARGEST_DIVISOR,
    LARGEST_MULTIPLE,
    LEAST_DIVISOR,
    convolution_scales,
    observer_before,
    observer_behind,
    odd_above,
    scale_of,
    weight_scales,
)

scales = st.floats(1e-4, 10)
SHAPE = (1, 16, 16)


def _ratio(value, largest=LARGEST_DIVISOR):
    """`value` as a fraction of whole numbers, which float32 scales meet within their own rounding."""
    found = Fraction(value).limit_denominator(largest)
    assert abs(float(found) - value) <= 4e-7 * value
    return found


@given(read=scales, written=scales, least=st.floats(1e-9, 10))
def test_a_weights_scale_gives_a_power_of_two_over_an_odd_number(read, written, least):
    found = float(weight_scales(torch.tensor([least]), read, written))
    ratio = _ratio(read * found / written)
    assert ratio.denominator % 2 and ratio.denominator <= LARGEST_DIVISOR
    assert ratio.numerator & (ratio.numerator - 1) == 0
    assert found >= least * (1 - 1e-6)
    if least * read * LARGEST_DIVISOR > written:  # finer is never asked for
        assert found <= least * (1 + 2.1 / LEAST_DIVISOR)


@given(value=st.floats(1e-3, 1e4))
def test_an_odd_number_is_the_least_above(value):
    found = odd_above(value)
    assert found % 2 and found >= value * (1 - 1e-6) and (found - 2 < value or found == 1)


def _half_even(x):
    return np.rint(x)


def _half_up(x):
    return np.floor(x + 0.5)


def _half_away(x):
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


@settings(max_examples=30, deadline=None)
@given(read=scales, written=scales, least=st.floats(1e-4, 1), seed=st.integers(0, 2**31))
def test_every_way_to_round_an_accumulator_gives_the_same_integer(read, written, least, seed):
    scale = np.float32(float(weight_scales(torch.tensor([least]), read, written)))
    read, written = np.float32(read), np.float32(written)
    real = float(read) * float(scale) / float(written)
    # What lies on the grid, with 8 bits of it on either side.
    sums = np.random.default_rng(seed).integers(-(2**31), 2**31, 20000) % int(max(2, 256 / real)) - int(
        128 / real
    )
    exact = sums * real
    whole = _half_even(exact)
    assert (np.abs(np.abs(exact - np.floor(exact)) - 0.5) > 1 / (4 * LARGEST_DIVISOR)).all(), "a tie"
    multiplier = round(real * 2**31 / 2 ** np.ceil(np.log2(real)))  # as TFLite's, 31 bits
    fixed = sums.astype(np.float64) * multiplier * 2.0 ** (np.ceil(np.log2(real)) - 31)
    in_float32 = (sums.astype(np.float32) * (read * scale)) / written
    # OpenVINO's kernels add 128 before they round.
    moved = in_float32 + np.float32(128)
    for way in (
        _half_even(exact),
        _half_up(exact),
        _half_away(exact),
        _half_away(fixed),
        _half_even(in_float32),
    ):
        np.testing.assert_array_equal(way, whole)
    np.testing.assert_array_equal(_half_even(moved) - 128, whole)


class _Residual(nn.Module):
    """Sums that share tensors, a mean, a product, and a convolution of next to nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first, self.second = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 1),
        )
        self.gate, self.hidden = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.verdict, self.mask = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 1, 1)
        with torch.no_grad():
            self.second.weight.mul_(0.05)
            self.gate.weight[0] = 1e-9

    def forward(self, x):
        x = self.stem(x)
        y = x + self.first(x)
        z = y + self.second(y)
        z = z * F.relu6(self.gate(z))
        return self.verdict(F.relu6(self.hidden(z)).mean((2, 3), keepdim=True)), self.mask(z)


def _images(count=8):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def prepared():
    return calibrate(_Residual().eval(), [_images()], input_shape=SHAPE).prepared


def test_every_operation_of_a_network_is_free_of_ties(prepared):
    seen = set()
    for node in prepared.graph.nodes:
        behind = observer_behind(prepared, node)
        if behind is None or node.op != "call_function":
            continue
        ends = convolution_scales(prepared, node)
        if ends is not None:
            steps = observer_before(prepared, node, 1).calculate_qparams()[0]
            ratios = [ends[0] * float(step) / ends[1] for step in steps]
        elif node.target in SUMS:
            ratios = [scale_of(observer_before(prepared, node, i)) / scale_of(behind) for i in (0, 1)]
            # Both in one: the sum counts their common denominator.
            assert np.lcm(*[_ratio(ratio, LARGEST_MULTIPLE).denominator for ratio in ratios]) % 2
            seen.add(str(node.target))
            continue
        elif node.target in PRODUCTS:
            ratios = [
                np.prod([scale_of(observer_before(prepared, node, i)) for i in (0, 1)]) / scale_of(behind)
            ]
        elif node.target in OWN_SCALE:
            ratios = [scale_of(observer_before(prepared, node, 0)) / 16**2 / scale_of(behind)]
        else:
            continue
        seen.add(str(node.target))
        assert all(_ratio(ratio, 32 * LARGEST_DIVISOR).denominator % 2 for ratio in ratios), node
    assert len(seen) == 4


def test_no_range_shrinks_and_few_grow():
    free, tied = (
        calibrate(
            _Residual().eval(), [_images()], input_shape=SHAPE, recipe=GridRecipe(tie_free=choice)
        ).prepared
        for choice in (True, False)
    )
    grown = []
    for name, observer in free.named_modules():
        if hasattr(observer, "steps"):
            grown.append(scale_of(observer) / scale_of(tied.get_submodule(name)))
    assert len(grown) > 8 and min(grown) > 1 - 1e-5 and max(grown) < 1.1
    assert np.median(grown) < 1.02


def test_biases_are_whole_steps_of_the_accumulator():
    grid = calibrate(_Residual().eval(), [_images()], input_shape=SHAPE)
    found = 0
    for node in grid.folded.graph.nodes:
        if "conv2d" not in str(node.target):
            continue
        read, weight, bias = node.args[:3]
        scales_of_weight = getattr(grid.folded, weight.args[1].target).double()
        value = grid.folded.get_parameter(bias.target).double()
        steps = value / (float(read.args[1]) * scales_of_weight)
        # float32 holds a large bias to within its own 24 bits.
        assert bool(((steps - steps.round()).abs() <= 1e-6 * steps.abs() + 1e-6).all())
        found += 1
    assert found >= 5


def test_a_sum_with_the_networks_input_takes_its_scale_as_it_is():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return (x + self.convolution(x),)

    torch.manual_seed(0)
    grid = calibrate(Shortcut().eval(), [_images()], input_shape=SHAPE).prepared
    (node,) = [node for node in grid.graph.nodes if node.target in SUMS]
    ratio = _ratio(INPUT_SCALE / scale_of(observer_behind(grid, node)))
    assert scale_of(observer_before(grid, node, 0)) == INPUT_SCALE and ratio.denominator % 2
