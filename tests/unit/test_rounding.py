"""Second-order rounding: what it promises of a layer's answer, and of a whole network."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
nn = torch.nn

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from quantize.errors import QuantizeError  # noqa: E402
from quantize.grid import calibrate  # noqa: E402
from quantize.ranges import LEVELS  # noqa: E402
from quantize.recipe import GridRecipe  # noqa: E402
from quantize.rounding import Moments, solve  # noqa: E402


def _moments(x, q=None):
    """Moments of inputs [K, n], in full precision and on the grid."""
    x = torch.cat([x, torch.ones(1, x.shape[1])]).double()
    q = x if q is None else torch.cat([q, torch.ones(1, q.shape[1])]).double()
    count = x.shape[1]
    return Moments((q @ q.T / count)[None], (x @ q.T / count)[None], count)


def _correlated(generator, inputs, count, rank):
    """Inputs that rise and fall together, as the pixels of a neighbourhood do."""
    mix = torch.randn(inputs, rank, generator=generator)
    return mix @ torch.randn(rank, count, generator=generator) + 0.05 * torch.randn(
        inputs, count, generator=generator
    )


def _nearest(weight):
    scale = weight.abs().amax(-1, keepdim=True) / LEVELS
    return (weight / scale).round() * scale


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), inputs=st.integers(2, 24), outputs=st.integers(1, 6))
def test_weights_are_whole_steps_and_the_largest_fits(seed, inputs, outputs):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, outputs, inputs, generator=generator)
    x = _correlated(generator, inputs, 32 * inputs, 2)
    rounded, bias, scale = solve(weight, torch.zeros(1, outputs), _moments(x))
    steps = rounded / scale[:, :, None]
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert float(steps.abs().max()) <= LEVELS + 1e-3
    assert bool(torch.isfinite(bias).all())


@pytest.mark.parametrize("seed", range(5))
def test_the_answer_loses_a_third_of_what_nearest_rounding_loses(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, 8, 9, generator=generator)
    x = _correlated(generator, 9, 2000, 2)
    rounded, bias, _ = solve(weight, torch.zeros(1, 8), _moments(x))
    wanted = weight[0] @ x
    second = (rounded[0] @ x + bias[0][:, None] - wanted).square().mean()
    nearest = (_nearest(weight)[0] @ x - wanted).square().mean()
    assert second < nearest / 3


def test_a_shift_of_the_inputs_is_taken_back_by_the_bias():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 4, 6, generator=generator)
    x = torch.randn(6, 5000, generator=generator)
    rounded, bias, _ = solve(weight, torch.zeros(1, 4), _moments(x, x + 0.25))
    away = rounded[0] @ (x + 0.25) + bias[0][:, None] - weight[0] @ x
    assert float(away.mean(1).abs().max()) < 1e-3


def test_few_observations_move_the_bias_alone():
    """Six images say nothing about forty weights: learned by heart, they would cost every other image."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 3, 40, generator=generator)
    x = torch.randn(40, 6, generator=generator)
    q = x + 0.2 * torch.randn(40, 6, generator=generator)
    rounded, _, scale = solve(weight, torch.zeros(1, 3), _moments(x, q))
    assert float(((rounded - weight).abs() / scale[:, :, None]).max()) < 3


def test_a_dead_input_is_no_trouble():
    x = torch.zeros(4, 200)
    rounded, bias, _ = solve(torch.ones(1, 2, 4), torch.ones(1, 2), _moments(x))
    torch.testing.assert_close(rounded, torch.ones(1, 2, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(bias, torch.ones(1, 2), atol=1e-6, rtol=0)


class _Differences(nn.Module):
    """Kernels that take a difference, as trained encoders have them: large weights, small answer."""

    def __init__(self):
        super().__init__()
        self.edge, self.last = nn.Conv2d(1, 64, 3), nn.Conv2d(64, 1, 1)
        with torch.no_grad():
            self.edge.weight[:, 0, 0, 1] += 33
            self.edge.weight[:, 0, 1, 1] -= 33

    def forward(self, x):
        return (self.last(torch.relu(self.edge(x))),)


def test_kernels_that_take_a_difference_keep_their_answer_and_the_network_is_untouched():
    torch.manual_seed(0)
    network = _Differences().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    slopes = torch.linspace(-0.9, 0.9, 32).view(1, 1, 1, 32) * torch.linspace(0.2, 1, 8).view(8, 1, 1, 1)
    images = (slopes + 0.004 * torch.randn(8, 1, 32, 32)).mul(128).round().clamp(-128, 127).div(128)
    graph = calibrate(network, [images], input_shape=(1, 32, 32)).prepared

    with torch.no_grad():
        wanted = network.edge(images)
        second = nn.functional.conv2d(
            images, graph.get_parameter("edge.weight"), graph.get_parameter("edge.bias")
        )
        nearest = nn.functional.conv2d(
            images, _nearest(network.edge.weight.flatten(1)).view(64, 1, 3, 3), network.edge.bias
        )
    assert (second - wanted).square().mean() < (nearest - wanted).square().mean() / 3
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was written to"


def test_an_unknown_rounding_is_refused():
    with pytest.raises(QuantizeError, match="up"):
        calibrate(
            nn.Conv2d(1, 1, 1),
            [torch.zeros(1, 1, 8, 8)],
            input_shape=(1, 8, 8),
            recipe=GridRecipe(rounding="up"),
        )
