"""The integer grid: what it promises to the targets, and what it refuses."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
nn = torch.nn

from quantize.errors import CalibrationError, QuantizeError  # noqa: E402
from quantize.grid import INPUT_SCALE, calibrate  # noqa: E402
from quantize.models import build  # noqa: E402
from quantize.models.batch_norm import fold_batch_norm  # noqa: E402
from quantize.ranges import LEVELS, RangeObserver  # noqa: E402

SHAPE = (1, 32, 48)
decomposed = torch.ops.quantized_decomposed
aten = torch.ops.aten


def _images(count=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *SHAPE), generator=generator).float().sub(128).div(128)


def _folded():
    torch.manual_seed(0)
    network = build({"size": "nano", "channels": 1}).train()
    with torch.no_grad():
        for _ in range(3):
            network(_images())
    return fold_batch_norm(network)


@pytest.fixture(scope="module")
def grid():
    return calibrate(_folded(), [_images()], input_shape=SHAPE)


def _scale(node):
    """Scale of the tensor that `node` reads or makes."""
    if node.target in (decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default):
        return node.args[1]
    (reader,) = node.users
    return reader.args[1]


def test_every_operation_reads_and_writes_the_grid(grid):
    computing = 0
    zero_points = {"clamp": set(), "other": set()}
    for node in grid.folded.graph.nodes:
        if node.op != "call_function":
            continue
        if "quantize" in str(node.target):
            if node.target == decomposed.quantize_per_tensor.default:
                clamp = "hardtanh" in str(node.args[0].target) or "relu6" in str(node.args[0].target)
                zero_points["clamp" if clamp else "other"].add(int(node.args[2]))
            continue
        computing += 1
        for source in node.all_input_nodes:
            assert source.op == "get_attr" or "dequantize" in str(source.target) or _fused(source), source
        for reader in node.users:
            assert "quantize_per_tensor" in str(reader.target) or _fused(node), (node, reader)
    assert computing > 100
    # Sums read some of the clamps.
    assert zero_points == {"clamp": {0, -128}, "other": {0}}


def _fused(node):
    return [str(reader.target) for reader in node.users] and all(
        "hardtanh" in str(reader.target) or "relu6" in str(reader.target) for reader in node.users
    )


def test_the_input_is_raw_pixels_on_the_grid(grid):
    (source,) = [node for node in grid.folded.graph.nodes if node.op == "placeholder"]
    for reader in source.users:
        assert reader.target == decomposed.quantize_per_tensor.default
        assert reader.args[1:5] == (INPUT_SCALE, 0, -128, 127)


def test_operations_that_only_select_keep_their_scale(grid):
    found = 0
    for node in grid.folded.graph.nodes:
        if node.target in (aten.max_pool2d.default, aten.upsample_nearest2d.vec, aten.view.default):
            found += 1
            assert _scale(node.args[0]) == _scale(node)
    assert found >= 5  # four upsamplings, and a max pool at least


def test_weights_have_a_scale_for_each_channel_and_stay_off_minus_128(grid):
    weights = [n for n in grid.folded.graph.nodes if n.target == decomposed.dequantize_per_channel.default]
    assert len(weights) > 50
    for node in weights:
        values = getattr(grid.folded, node.args[0].target)
        scales = getattr(grid.folded, node.args[1].target)
        assert values.dtype == torch.int8 and int(values.min()) >= -127
        assert scales.shape == values.shape[:1]


def test_the_outputs_have_their_own_scales_and_the_answers_are_close(grid):
    network, images = _folded(), _images()
    steps = grid.output_scales()
    assert len(steps) == 2 and steps[0] != steps[1]
    with torch.no_grad():
        for before, after, step in zip(network(images[:1]), grid.folded(images[:1]), steps):
            assert float((after - before).abs().max()) < 12 * step
            counts = after / step
            torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)


def test_a_product_reads_and_writes_steps_of_its_own():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return (self.left(x) * self.right(x),)

    torch.manual_seed(0)
    network, images = Product().eval(), _images()
    folded = calibrate(network, [images], input_shape=SHAPE)
    (product,) = [node for node in folded.folded.graph.nodes if node.target == aten.mul.Tensor]
    assert len({_scale(node) for node in (*product.args, product)}) == 3
    with torch.no_grad():
        away = folded.folded(images[:1])[0] - network(images[:1])[0]
    assert float(away.abs().max()) < 5 * _scale(product)


class _Sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return self.gate(x)


def test_an_operation_without_a_place_is_named():
    with pytest.raises(QuantizeError) as caught:
        calibrate(_Sigmoid(), [_images()], input_shape=SHAPE)
    assert "sigmoid" in str(caught.value) and "gate" in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_activation_that_cannot_be_fused_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(1, 1, 1), nn.ReLU6()

        def forward(self, x):
            y = self.conv(x)
            return self.act(y), y

    with pytest.raises(QuantizeError, match="no place"):
        calibrate(Shared(), [_images()], input_shape=SHAPE)


def test_weights_that_are_not_finite_are_refused():
    network = _folded()
    with torch.no_grad():
        network.sample.logit.weight[0] = float("nan")
    with pytest.raises(QuantizeError, match=r"sample\.logit\.weight"):
        calibrate(network, [_images()], input_shape=SHAPE)


def test_activations_that_are_not_finite_are_refused():
    with pytest.raises(QuantizeError, match="not finite"):
        calibrate(nn.Conv2d(1, 1, 1), [_images() * float("nan")], input_shape=SHAPE)


@pytest.mark.parametrize("batches", [[], [torch.zeros(1, 1, 8, 8)]])
def test_unusable_calibration_images_are_refused(batches):
    with pytest.raises(CalibrationError) as caught:
        calibrate(nn.Conv2d(1, 1, 1), batches, input_shape=SHAPE)
    assert caught.value.exit_code == 2


def _observe(method, *values):
    observer = RangeObserver(method)
    for value in values:
        observer(value)
    return observer.range()


def test_minmax_keeps_every_value():
    assert _observe("minmax", torch.tensor([0.5, -3.0]), torch.tensor([1.0])) == 3.0


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_robust_ranges_let_one_outlier_saturate_and_keep_a_plain_tail(method):
    torch.manual_seed(0)
    plain = torch.rand(200_000) * 2 - 1
    outlier = torch.cat([plain, torch.tensor([50.0])])
    assert 0.95 < _observe(method, plain) <= 1.0
    assert _observe(method, outlier) < 25


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_the_range_does_not_depend_on_the_order_of_images(method):
    torch.manual_seed(0)
    images = [torch.randn(4096) * scale for scale in (0.01, 1.0, 30.0)]
    assert _observe(method, *images) == pytest.approx(_observe(method, *reversed(images)), rel=1e-3)


def test_zeros_do_not_vote():
    torch.manual_seed(0)
    values = torch.randn(4096).abs()
    padded = torch.cat([values, torch.zeros(100_000)])
    assert _observe("mse", padded) == _observe("mse", values)


def test_a_tensor_of_zeros_still_has_a_scale():
    observer = RangeObserver()
    observer(torch.zeros(10))
    scale, zero_point = observer.calculate_qparams()
    # Not so small that XNNPACK refuses to add the tensor to logits of +-32, or that a bias of 32 overflows int32.
    assert float(scale) / (32 / LEVELS) > 2**-10
    assert 32 / (float(scale) * 2**-13) < 2**31 and int(zero_point) == 0


def test_a_scale_is_the_range_over_127():
    observer = RangeObserver("minmax")
    observer(torch.tensor([12.7]))
    assert float(observer.calculate_qparams()[0]) == pytest.approx(12.7 / LEVELS)
