"""What is done to a network before it is put on the grid: its function stays, and rounding does less to it."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from quantize.equalisation import equalise  # noqa: E402
from quantize.families import find_families  # noqa: E402
from quantize.grid import calibrate, capture_copy  # noqa: E402
from quantize.models import build, names  # noqa: E402
from quantize.models.batch_norm import fold_batch_norm  # noqa: E402
from quantize.noise import find_steps, rounding_noise  # noqa: E402
from quantize.operations import CONVOLUTIONS  # noqa: E402
from quantize.parameters import macs  # noqa: E402
from quantize.recipe import GridRecipe  # noqa: E402
from quantize.widening import left_of, plan, widen  # noqa: E402

SHAPE = (1, 32, 48)


def _images(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 6, generator=generator)
    fine = nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear")
    return [(image * 255).round().sub(128).div(128)[None] for image in fine]


class _Chained(nn.Module):
    """A stem with a nearly constant channel that everything hangs on, a residual pair, and a padded reader."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU6())
        self.narrow, self.wide = nn.Conv2d(4, 6, 1), nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU6())
        self.back, self.mask = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 1, 1)
        self.defect = nn.Conv2d(6, 1, 1)
        with torch.no_grad():
            self.stem[0].weight[0], self.stem[0].bias[0] = 0.05, 3.0
            self.depthwise[0].weight[0], self.depthwise[0].bias[0] = 0.11, 0.0
            self.narrow.weight[:, 0] *= 40
            self.narrow.weight *= torch.tensor([1, 12, 1, 4, 1, 1.0]).reshape(6, 1, 1, 1)
            self.narrow.bias += 20
            self.wide[0].weight *= 0.05
            # So that the answers' own rounding is not what is seen.
            self.mask.bias -= self.mask(self.narrow(torch.full((1, 4, 1, 1), 3.0))).flatten()

    def forward(self, x):
        first = self.narrow(self.depthwise(self.stem(x)))
        second = first + self.back(self.wide(first))
        return self.defect(second.mean((2, 3), keepdim=True)).flatten(1), self.mask(second)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return _Chained().eval()


def _answers(module, images):
    with torch.no_grad():
        return [torch.cat(parts) for parts in zip(*(module(image) for image in images))]


def _away(module, network, images):
    return [
        float((ours - theirs).square().mean())
        for ours, theirs in zip(_answers(module, images), _answers(network, images))
    ]


def test_a_family_is_what_sums_and_depthwise_convolutions_keep_together(network):
    families = find_families(capture_copy(network, SHAPE))
    found = [
        ([node.name for node in family.convolutions], [node.name for node in family.readers])
        for family in families
    ]
    stem, residual, wide = found
    assert stem == (["conv2d", "conv2d_1"], ["conv2d_2"])
    assert residual[0] == ["conv2d_2", "conv2d_4"]  # a sum binds them
    assert sorted(residual[1]) == ["conv2d_3", "conv2d_5", "conv2d_6"]
    assert wide == (["conv2d_3"], ["conv2d_4"])
    assert [family.is_linear for family in families] == [False, True, False]
    # One more channel of the stem: a row of each convolution and a column of their reader, on 32 x 48 cells.
    assert families[0].channel_macs(capture_copy(network, SHAPE)) == 32 * 48 * (1 + 9 + 6)


def test_an_output_a_product_and_shared_weights_are_left_alone():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice, self.last = (nn.Conv2d(1, 1, 1) for _ in range(3))

        def forward(self, x):
            a = self.first(x)
            b = self.twice(self.twice(a * self.first(x)))
            return self.last(b), b

    assert find_families(capture_copy(Odd().eval(), SHAPE)) == []


@pytest.mark.parametrize("name", names())
def test_equalising_and_widening_keep_the_function_of_every_model(name):
    torch.manual_seed(0)
    model = fold_batch_norm(build({"name": name, "size": "nano", "channels": 1}).eval(), SHAPE)
    graph = capture_copy(model, SHAPE)
    before = copy.deepcopy(model.state_dict())
    images = _images()
    wanted = _answers(model, images)
    equalise(graph, images)
    for ours, theirs in zip(_answers(graph, images), wanted):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    widened = widen(graph, images, GridRecipe(widening=0.1))
    assert sum(widened.channels.values()) > 0
    for ours, theirs in zip(_answers(graph, images), wanted):
        # Copies that a clamp cuts off within half a step of its end.
        assert float((ours - theirs).abs().max()) < 0.02 * float(theirs.abs().max() + 1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} of the network itself was written to"


class _Watch(torch.fx.Interpreter):
    """Keeps what some nodes computed for all images."""

    def __init__(self, graph, nodes, images):
        super().__init__(graph)
        self.found = {name: [] for name in nodes}
        with torch.no_grad():
            for image in images:
                self.run(image)

    def run_node(self, n):
        value = super().run_node(n)
        if n.name in self.found:
            self.found[n.name].append(value)
        return value

    def fill(self):
        """By node, which share of its grid each channel spans."""
        maps = {name: torch.cat(values) for name, values in self.found.items()}
        return {
            name: (x.amax((0, 2, 3)) - x.amin((0, 2, 3))) / (2 * x.abs().max()) for name, x in maps.items()
        }


def test_equalised_channels_fill_the_grid_of_one_of_their_tensors(network):
    """Of one: a factor is the same in all tensors of a family, and none of them may need a wider grid."""
    images, nodes = _images(), ("conv2d_2", "conv2d_4", "add")
    graph = capture_copy(network, SHAPE)
    before = _Watch(graph, nodes, images).fill()
    equalise(graph, images)
    after = _Watch(graph, nodes, images).fill()
    assert torch.stack(list(before.values())).amax(0).min() < 0.3
    assert torch.stack(list(after.values())).amax(0).min() > 0.8


def test_each_step_takes_the_grid_nearer_to_full_precision(network):
    images, others = _images(16), _images(8, seed=1)
    recipes = {
        # Without equal rounding everywhere: here channels are worlds apart, and that moves scales a little.
        "plain": GridRecipe(one_sided=False, equalised=False, tie_free=False),
        "one-sided": GridRecipe(equalised=False, tie_free=False),
        "equalised": GridRecipe(),
    }
    grids = {
        key: calibrate(network, images, input_shape=SHAPE, recipe=recipe) for key, recipe in recipes.items()
    }
    away = {key: _away(grid.folded, network, others)[1] for key, grid in grids.items()}
    assert away["one-sided"] < 0.8 * away["plain"]
    assert away["equalised"] < away["one-sided"]
    assert grids["equalised"].widened is None
    widened = calibrate(network, images, input_shape=SHAPE, recipe=GridRecipe(widening=0.6)).widened
    assert 0 < widened.mac_share <= 0.6


class _Rounded(torch.fx.Interpreter):
    """Full precision but for one tensor."""

    def __init__(self, graph, node, step):
        super().__init__(graph)
        self.node, self.step = node, step

    def run_node(self, n):
        value = super().run_node(n)
        if n is self.node:
            return torch.fake_quantize_per_tensor_affine(value, *self.step, -128, 127)
        return value


def test_the_rounding_of_a_widened_tensor_does_less_damage(network):
    images = _images(16)
    graphs = [capture_copy(network, SHAPE) for _ in range(2)]
    for graph in graphs:
        equalise(graph, images)
    assert widen(graphs[1], images, GridRecipe(widening=0.6)).channels["conv2d"] >= 1
    away = []
    for graph in graphs:
        steps = find_steps(graph, images, GridRecipe())
        (stem,) = [node for node in steps if node.args[0].name == "conv2d"]
        run = _Rounded(graph, stem, steps[stem])
        away.append(_away(lambda image, run=run: run.run(image), network, images)[1])
    assert away[1] < away[0] / 2


def test_the_channel_that_everything_hangs_on_is_the_one_that_is_copied(network):
    images = _images(16)
    graph = capture_copy(network, SHAPE)
    equalise(graph, images)
    steps = find_steps(graph, images, GridRecipe())
    noise = rounding_noise(graph, images, steps)
    assert float(sum(part.sum() for part in noise.values())) == pytest.approx(1, abs=0.01)
    (stem,) = [node for node in noise if node.name.startswith("hardtanh") and node.args[0].name == "conv2d"]
    assert int(noise[stem].argmax()) == 0 and noise[stem][0] > 0.9 * noise[stem].sum()
    before = {node.name: macs(graph, node) for node in graph.graph.nodes if node.target in CONVOLUTIONS}
    widened = widen(graph, images, GridRecipe(widening=0.2))
    after = {node.name: macs(graph, node) for node in graph.graph.nodes if node.target in CONVOLUTIONS}
    assert "conv2d" in widened.channels
    copies = graph.get_parameter("stem.0.weight")[4:]
    assert torch.equal(copies, network.stem[0].weight[:1].expand_as(copies))
    biases = graph.get_parameter("stem.0.bias")
    shifts = torch.cat([biases[:1], biases[4:]]) - network.stem[0].bias[0]
    assert float(shifts.sum()) == pytest.approx(0, abs=1e-5) and len(shifts.unique()) == len(shifts)
    added = sum(after.values()) / sum(before.values()) - 1
    assert added == pytest.approx(widened.mac_share) and added <= 0.2


@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=6),
    st.lists(st.integers(1, 50), min_size=2, max_size=2),
    st.floats(0, 500),
)
def test_a_plan_keeps_its_budget_and_prefers_damage(damage, costs, budget):
    damages = [torch.tensor(damage), torch.tensor(damage[:1])]
    counts = plan(damages, costs, budget)
    spent = sum((count - 1) * costs[place] for place, wanted in counts.items() for count in wanted.values())
    assert spent <= budget
    for place, wanted in counts.items():
        for channel, count in wanted.items():
            assert count > 1 and damages[place][channel] > 0
            for other, part in enumerate(damages[place].tolist()):
                if part > damages[place][channel]:
                    assert wanted.get(other, 1) >= count


@given(st.integers(1, 7), st.floats(-3, 3), st.data())
def test_even_phases_leave_the_square_and_nothing_leaves_less_than_none(count, start, data):
    even = torch.arange(count) / count + start
    assert float(left_of(even)) == pytest.approx(1 / count**2, abs=1e-4)
    phases = torch.tensor(data.draw(st.lists(st.floats(-2, 2), min_size=count, max_size=count)))
    assert -1e-6 <= float(left_of(phases)) <= 1 + 1e-6
    assert float(left_of(torch.zeros(count))) == pytest.approx(1)
    # What is said is what rounding does to values that are spread evenly over many steps.
    values = torch.linspace(-50, 50, 20_001, dtype=torch.float64)[:, None] + phases.double()
    error = (values.round() - values).mean(1)
    assert float(error.square().mean() * 12) == pytest.approx(float(left_of(phases.double())), abs=0.02)


class _Grouped(nn.Module):
    """A convolution in two groups, a depthwise one with two outputs for each input, and a reshape of maps."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU6())
        self.groups = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU6())
        self.mixed = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU6())
        self.twice = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.ReLU6())
        self.narrow = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU6())
        self.last, self.mask, self.defect = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 1, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        maps = self.last(self.narrow(self.twice(self.mixed(self.groups(self.stem(x))))))
        pooled = maps.mean((2, 3), keepdim=True).view(1, 2, 1, 2)
        return self.defect(pooled).mean((2, 3)), self.mask(maps)


def test_other_groups_than_depthwise_and_reshapes_stay_as_they_are():
    torch.manual_seed(0)
    network, images = _Grouped().eval(), _images()
    graph = capture_copy(network, SHAPE)
    before = {node.name: node.args[6] for node in graph.graph.nodes if len(node.args) > 6}
    shapes = {node.name: node.meta["val"].shape for node in graph.graph.nodes if "view" in node.name}
    equalise(graph, images)
    widened = widen(graph, images, GridRecipe(widening=3.0))
    assert sum(widened.channels.values()) > 0
    for node in graph.graph.nodes:
        if node.name in before:
            assert node.args[6] == before[node.name]
        if node.name in shapes:
            assert node.meta["val"].shape == shapes[node.name]
    for ours, theirs in zip(_answers(graph, images), _answers(network, images)):
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)
