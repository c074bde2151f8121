"""Which layer does it, and which layers stay in float for it."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
nn = torch.nn

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from quantize.errors import CalibrationError, QuantizeError  # noqa: E402
from quantize.grid import calibrate  # noqa: E402
from quantize.layers import Layer, find_layers  # noqa: E402
from quantize.mixed import plan_mixed  # noqa: E402
from quantize.models import build, names  # noqa: E402
from quantize.models.batch_norm import fold_batch_norm  # noqa: E402
from quantize.recipe import GridRecipe  # noqa: E402
from quantize.sensitivity import Change, Sensitivity, measure  # noqa: E402

SHAPE = (1, 32, 48)
decomposed = torch.ops.quantized_decomposed
aten = torch.ops.aten


def _images(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *SHAPE), generator=generator).float().sub(128).div(128)


class _Culprit(nn.Module):
    """`wide` writes a large channel that nobody reads and a small one that both answers are made of: next to its own
    power the rounding is nothing, and its steps are larger than all that the answers need."""

    def __init__(self):
        super().__init__()
        self.first, self.wide = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
        self.narrow = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU6())
        self.mask, self.mean, self.defect = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, 1.0]).reshape(2, 1, 1, 1))
            self.wide.weight.copy_(torch.tensor([[50.0, 50.0], [0.05, 0.0]]).reshape(2, 2, 1, 1))
            self.narrow[0].weight.copy_(torch.rand(4, 2, 3, 3) * torch.tensor([0.0, 8.0]).reshape(1, 2, 1, 1))

    def forward(self, x):
        maps = self.narrow(self.wide(self.first(x)))
        return self.defect(self.mean(maps).mean((2, 3), keepdim=True)).flatten(1), self.mask(maps)


def _grid(network, **options):
    return calibrate(network.eval(), [_images()], input_shape=SHAPE, **options)


@pytest.fixture(scope="module")
def planted():
    torch.manual_seed(0)
    network = _Culprit()
    grid = _grid(network)
    return network, grid, measure(grid, list(_images(4, seed=1).split(1)))


def test_the_culprit_comes_first_although_others_have_a_worse_ratio(planted):
    _, _, found = planted
    worst = found.rows[0]
    assert worst.layer.name == "wide" and worst.damage > 0.9
    assert worst.activation.mask_rms > 5 * worst.weights.mask_rms
    assert min(found.rows, key=lambda row: row.sqnr_db).layer.name != "wide"
    assert [row.damage for row in found.rows] == sorted((row.damage for row in found.rows), reverse=True)
    assert math.isclose(sum(row.damage for row in found.rows), 1.0, rel_tol=1e-6)


def test_layers_are_named_and_their_operations_counted(planted):
    _, grid, found = planted
    layers = {layer.name: layer for layer in find_layers(grid.prepared)}
    assert list(layers) == ["first", "wide", "narrow.0", "mean", "network/mean", "defect", "mask"]
    height, width = SHAPE[1:]
    assert layers["narrow.0"].macs == (height // 2) * (width // 2) * 4 * 2 * 9
    assert layers["wide"].readers == (layers["narrow.0"].node,)
    assert layers["mask"].readers == () and layers["mask"].kind == "convolution"
    assert math.isclose(sum(row.mac_share for row in found.rows), 1.0)


def test_a_depthwise_convolution_counts_one_input_for_each_output():
    class Depthwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.deep = nn.Conv2d(1, 6, 1, bias=False), nn.Conv2d(6, 6, 5, padding=2, groups=6)

        def forward(self, x):
            return self.deep(self.wide(x))

    graph = torch.export.export(Depthwise(), (torch.zeros(1, *SHAPE),)).module()
    assert [layer.macs for layer in find_layers(graph)] == [32 * 48 * 6, 32 * 48 * 6 * 25]


@pytest.mark.parametrize("name", names())
def test_all_layers_together_are_the_int8_network(name):
    """What the walk quantizes is what the targets lower: the same change, from other code."""
    torch.manual_seed(0)
    network = build({"name": name, "size": "nano", "channels": 1}).train()
    with torch.no_grad():
        for _ in range(3):
            network(_images())
    folded = fold_batch_norm(network)
    grid = _grid(folded)
    (image,) = _images(1, seed=1).split(1)
    found = measure(grid, [image])
    with torch.no_grad():
        for before, after, change in zip(
            folded(image), grid.folded(image), (found.together.defect_rms, found.together.mask_rms)
        ):
            assert change == pytest.approx(float((after - before).square().mean().sqrt()), rel=0.05, abs=1e-5)
    assert len({row.layer.name for row in found.rows}) == len({row.layer.node for row in found.rows})
    single = [row.whole.mask_rms for row in found.rows]
    assert 0 < max(single) < 1.5 * found.together.mask_rms


def test_verdicts_are_of_photographs_and_masks_of_the_positives(planted):
    network, grid, _ = planted
    images = _images(4, seed=1)
    with torch.no_grad():
        scores = network(images)[0].flatten()
    tau = float(scores.sort().values[1:3].mean())  # between the second and the third photograph
    found = measure(grid, list(images.split(1)), threshold=tau)
    assert found.count == 4 and found.positives == 2
    tiled = measure(grid, [images[:2], images[2:]], threshold=float(scores.min()) - 1)
    assert tiled.count == tiled.positives == 2
    assert tiled.together.mask_rms == pytest.approx(found.together.mask_rms)
    nobody = measure(grid, [images[:1]], threshold=1e6)
    assert nobody.positives == 0 and math.isnan(nobody.together.mask_agreement)


def test_no_images_are_refused(planted):
    with pytest.raises(CalibrationError, match="no images"):
        measure(planted[1], [])


# The mixed-precision plan


def _row(node, macs, total, weights=0.0, activation=0.0, readers=()):
    nothing = Change(0.0, 0.0, 0, 1.0)
    layer = Layer(node.upper(), node, "convolution", tuple(readers), macs)
    damage = weights + activation
    return Sensitivity(layer, macs / total, nothing, nothing, nothing, 30.0, damage, weights, activation)


def test_the_plan_takes_what_gives_most_for_its_operations():
    rows = [
        _row("a", 5, 100, activation=0.5, readers=["b"]),
        _row("b", 3, 100, activation=0.05, readers=["c"]),
        _row("c", 60, 100, activation=0.4),
        _row("d", 32, 100, weights=0.05),
    ]
    plan = plan_mixed(rows, 0.10)
    assert set(plan.nodes) == {"a", "b"} and set(plan.layers) == {"A", "B"}
    assert plan.int8_mac_share == pytest.approx(0.92)
    assert plan.damage_removed == pytest.approx(0.5)
    assert plan_mixed(rows, 0.07).nodes == ()  # a's output is of no use in float while b reads integers
    assert set(plan_mixed(rows, 0.7).nodes) == {"a", "b"}  # c takes more of the operations than of the damage


def test_several_layers_together_keep_the_share():
    rows = [_row(f"n{i}", 8, 100, weights=0.3) for i in range(3)] + [_row("rest", 76, 100, weights=0.1)]
    assert len(plan_mixed(rows, 0.10).nodes) == 1 and len(plan_mixed(rows, 0.16).nodes) == 2


def test_what_costs_more_of_the_operations_than_it_takes_of_the_damage_stays_int8():
    rows = [_row("a", 8, 100, activation=0.04), _row("b", 92, 100, activation=0.96)]
    assert plan_mixed(rows, 0.10).nodes == ()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=7),
    st.sampled_from([0.0, 0.05, 0.1, 0.3]),
)
def test_the_plan_keeps_its_share_and_no_single_step_is_left_that_would_be_worth_it(facts, share):
    total = sum(macs for macs, _, _ in facts) or 1
    rows = [
        _row(f"n{i}", macs, total, weights, activation, [f"n{i + 1}"] if i + 1 < len(facts) else [])
        for i, (macs, weights, activation) in enumerate(facts)
    ]
    plan = plan_mixed(rows, share)
    spent = sum(row.mac_share for row in rows if row.layer.node in plan.nodes)
    assert spent <= share + 1e-9 and plan.int8_mac_share == pytest.approx(1 - spent)
    whole = sum(row.damage for row in rows)
    for row in rows:
        if row.layer.node not in plan.nodes and whole:
            too_much = spent + row.mac_share > share
            assert too_much or row.weights_damage / whole <= row.mac_share + 1e-9


# Layers in float on the grid


@pytest.mark.parametrize("rounding", ["second-order", "nearest"])
def test_layers_that_are_left_keep_their_weights_and_the_tensor_between_them(planted, rounding):
    network, grid, _ = planted
    layers = {layer.name: layer.node for layer in find_layers(grid.prepared)}
    mixed = _grid(network, leave=[layers["wide"], layers["narrow.0"]], recipe=GridRecipe(rounding=rounding))
    graph = mixed.folded
    for node in graph.graph.nodes:
        if node.target != aten.conv2d.default:
            continue
        on_grid = node.args[1].target == decomposed.dequantize_per_channel.default
        assert on_grid == (node.name not in mixed.leave)
    (reader,) = [node for node in graph.graph.nodes if node.name == layers["narrow.0"]]
    assert reader.args[0].name == layers["wide"]  # nothing in between
    state = dict(graph.named_parameters()) | dict(graph.named_buffers())
    if rounding == "nearest":  # the other makes good what the layers before have lost
        torch.testing.assert_close(state["wide.weight"], mixed.trained["wide.weight"])
    images = _images(4, seed=1)
    with torch.no_grad():
        away = {
            kind: sum(
                float((found.folded(image)[1] - network(image)[1]).square().sum())
                for image in images.split(1)
            )
            for kind, found in (("int8", grid), ("mixed", mixed))
        }
    assert away["mixed"] < away["int8"] / 10


def test_a_layer_that_is_not_there_cannot_be_left(planted):
    with pytest.raises(QuantizeError, match="nowhere"):
        _grid(planted[0], leave=["nowhere"])


@pytest.mark.parametrize("name", names())
def test_a_layer_of_every_kind_can_be_left(name):
    torch.manual_seed(0)
    folded = fold_batch_norm(build({"name": name, "size": "nano", "channels": 1}).eval())
    graph = torch.export.export(folded, (torch.zeros(1, *SHAPE),)).module()
    layers = find_layers(graph)
    first = {layer.kind: layer for layer in reversed(layers)}.values()
    leave = {node for layer in (*first, layers[-1]) for node in (layer.node, *layer.readers)}
    mixed = calibrate(
        folded, [_images(2)], input_shape=SHAPE, recipe=GridRecipe(rounding="nearest"), leave=leave
    )
    with torch.no_grad():
        for before, after in zip(folded(_images(1)), mixed.folded(_images(1))):
            torch.testing.assert_close(after, before, atol=0.5, rtol=0.5)
