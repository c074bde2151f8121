"""The network: names that foreign weights know, shapes, the gradient switch, and folding."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from edge.errors import InputError  # noqa: E402
from quantize.models import build, names  # noqa: E402
from quantize.models.batch_norm import fold_batch_norm  # noqa: E402
from quantize.models.sample_centric import SampleHead, _pool_chain  # noqa: E402


def _network(**changes):
    torch.manual_seed(0)
    return build({"name": "sample-centric", "size": "nano", "channels": 1, **changes})


def test_adding_a_file_registers_a_network():
    assert {"pixel-only", "sample-centric"} <= set(names())


def test_encoder_of_width_one_has_torchvisions_names_and_shapes():
    state = build({"size": "small", "channels": 3}).encoder.state_dict()
    # Read off torchvision.models.mobilenet_v2().
    published = {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.0.1.running_mean": (32,),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.bias": (16,),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.2.conv.2.weight": (24, 96, 1, 1),
        "features.7.conv.2.weight": (64, 192, 1, 1),
        "features.13.conv.2.weight": (96, 576, 1, 1),
        "features.13.conv.3.running_var": (96,),
    }
    assert {name: tuple(state[name].shape) for name in published} == published
    assert not any(name.startswith("features.14.") for name in state)


@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 1), (48, 80, 3), (16, 16, 1)])
def test_outputs_are_one_logit_and_a_mask_at_stride_2(height, width, channels):
    with torch.no_grad():
        defect, mask = _network(channels=channels).eval()(torch.zeros(2, channels, height, width))
    assert defect.shape == (2, 1)
    assert mask.shape == (2, 1, height // 2, width // 2)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (12, 20), (64, 64), (17, 3), (1, 40)])
def test_the_chain_of_max_pools_is_the_global_maximum(height, width):
    x = torch.randn(2, 3, height, width)
    highest = x
    for window in _pool_chain(height, width):
        highest = nn.functional.max_pool2d(highest, window)
    assert torch.equal(highest, x.amax((2, 3), keepdim=True))


@pytest.mark.parametrize(("share", "reaches"), [(0.0, False), (0.25, True), (1.0, True)])
def test_the_sample_gradient_enters_the_encoder_by_its_share(share, reaches):
    network = _network(sample_gradient=share).train()
    network(torch.randn(4, 1, 32, 32))[0].sum().backward()
    gradient = network.encoder.features[0][0].weight.grad
    assert (gradient is not None and bool(gradient.any())) == reaches
    assert network.sample.logit.weight.grad.any()


def test_the_share_scales_the_gradient_and_nothing_else():
    gradients, answers = [], []
    for share in (1.0, 0.25):
        network = _network(sample_gradient=share).train()
        torch.manual_seed(1)
        defect = network(torch.randn(4, 1, 32, 32)).defect
        defect.sum().backward()
        assert network.mask.logit.weight.grad is None  # the verdict neither sees nor moves the mask
        gradients.append(network.encoder.features[-1].conv[-2].weight.grad)
        answers.append(defect.detach())
    torch.testing.assert_close(answers[1], answers[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0] * 0.25)


def test_folding_keeps_the_function_and_removes_every_batch_norm():
    network = _network()
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 1, 32, 32))
    network.eval()
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        for before, after in zip(network(x), folded(x)):
            torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


class _Attributes(nn.Module):
    """Batch norms as attributes: behind a convolution, behind one that is read twice, behind none, and used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.second, self.second_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.bare_norm = nn.BatchNorm2d(4, affine=False)
        self.norm_name = self.first_norm

    def forward(self, x):
        x = torch.relu(self.first_norm(self.first(x)))
        y = self.second(x)
        x = self.second_norm(y) + self.bare_norm(y)
        return self.twice_norm(self.twice(self.twice_norm(self.twice(x))))


@pytest.mark.parametrize(("shape", "depthwise"), [((1, 16, 16), 3), (None, 4)])
def test_batch_norms_outside_of_a_sequential_are_folded_or_become_convolutions(shape, depthwise):
    torch.manual_seed(0)
    network = _Attributes().train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 1, 16, 16) * 3 + 1)
    network.eval()
    folded = fold_batch_norm(network, shape)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(m, nn.Conv2d) and m.groups == 4 for m in folded.modules()) == depthwise
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"name": "resnet"}, "resnet"),
        ({"size": "huge"}, "huge"),
        ({"channels": 2}, "grey or RGB"),
        ({"sample_gradient": 2}, "share"),
        ({"colour": 1}, "colour"),
    ],
)
def test_an_unknown_configuration_is_named(config, word):
    with pytest.raises(InputError) as caught:
        build(config)
    assert word in str(caught.value)


def test_the_sample_head_sees_some_features_in_training_and_all_of_them_otherwise():
    torch.manual_seed(0)
    head = SampleHead(64, 8, dropout=0.5)
    x = torch.rand(4, 64, 4, 4) + 0.5
    in_training = [head.train()(x) for _ in range(2)]
    assert not torch.equal(*in_training)
    assert torch.equal(head.eval()(x), head(x))
    whole = SampleHead(64, 8, dropout=0.0)
    whole.load_state_dict(head.state_dict())
    assert torch.equal(whole.train()(x), head.eval()(x))
