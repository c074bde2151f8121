"""The localization and pixel-confidence network: what each stage says, learns and leaves alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from edge.errors import InputError  # noqa: E402
from quantize.models import build, names  # noqa: E402
from quantize.models.outputs import TrainingOutput  # noqa: E402
from quantize.models.pixel_confidence import WINDOWS, PixelConfidence  # noqa: E402
from quantize.models.sample_centric import SIZES, initialise  # noqa: E402


def _network(**changes):
    torch.manual_seed(0)
    return build({"name": "pixel-confidence", "size": "nano", "channels": 1, **changes})


def _images(count=2, height=48, width=64):
    return torch.randn(count, 1, height, width, generator=torch.Generator().manual_seed(0)) * 0.4


def _gradient(module):
    """Whether a gradient arrived at all parameters of `module` that learn."""
    found = [p.grad is not None and bool(p.grad.any()) for p in module.parameters() if p.requires_grad]
    return bool(found) and all(found)


@pytest.fixture(scope="module")
def output():
    return _network().train()(_images())


def test_it_is_registered_with_the_sizes_of_the_others():
    assert "pixel-confidence" in names()
    for size in SIZES:
        assert isinstance(_network(size=size), nn.Module)


def test_training_answers_everything_that_the_loss_looks_at(output):
    assert isinstance(output, TrainingOutput)
    assert output.defect.shape == (2, 1)
    assert output.mask.shape == output.first_mask.shape == (2, 1, 24, 32)
    assert output.coarse.shape == output.focus.shape == (2, 1, 3, 4)


@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 1), (48, 80, 3), (16, 16, 1)])
@pytest.mark.parametrize("join", [True, False])
def test_eval_answers_the_verdict_and_the_mask_alone(height, width, channels, join):
    with torch.no_grad():
        answer = _network(channels=channels, join=join).eval()(torch.zeros(2, channels, height, width))
    assert type(answer) is tuple
    defect, mask = answer
    assert defect.shape == (2, 1) and mask.shape == (2, 1, height // 2, width // 2)


def test_a_fresh_network_corrects_nothing(output):
    assert torch.equal(output.mask, output.first_mask)


def test_the_focus_is_the_localizations_probability_and_carries_no_gradient(output):
    assert not output.focus.requires_grad
    torch.testing.assert_close(output.focus, 2 * torch.sigmoid(output.coarse.detach()))


def test_the_pixel_weight_scales_the_focus_and_0_turns_it_off():
    focus = {alpha: _network(pixel_weight=alpha).train()(_images()).focus for alpha in (0.0, 1.0, 3.0)}
    assert focus[0.0] is None
    torch.testing.assert_close(focus[3.0], 3 * focus[1.0])


def test_gradients_reach_the_localization_from_its_own_loss_and_through_the_join():
    network = _network().train()
    network(_images()).coarse.sum().backward()
    assert _gradient(network.localization)
    assert _gradient(network.encoder.features[13])
    assert not _gradient(network.decoder)

    network = _network().train()
    nn.init.normal_(network.join.weight, std=0.1)
    network(_images()).mask.sum().backward()
    assert _gradient(network.localization.features)
    assert not _gradient(network.localization.logit)


def test_without_the_join_the_second_stage_does_not_see_the_first():
    network = _network(join=False).train()
    network(_images()).mask.sum().backward()
    assert network.join is None
    assert not _gradient(network.localization.features)

    for join, differs in ((True, True), (False, False)):
        network = _network(join=join).train()
        if join:
            nn.init.normal_(network.join.weight, std=0.1)
        with torch.no_grad():
            before = network(_images()).mask
            for parameter in network.localization.parameters():
                parameter.mul_(1.5)
            assert torch.equal(before, network(_images()).mask) != differs


@pytest.mark.parametrize(("share", "reaches"), [(0.0, False), (1.0, True)])
def test_the_sample_gradient_enters_by_its_share(share, reaches):
    network = _network(sample_gradient=share).train()
    network(_images()).defect.sum().backward()
    assert _gradient(network.encoder.features[0][0]) == reaches
    assert network.sample.logit.weight.grad.any()


def test_the_correction_learns_from_its_start_at_zero():
    network = _network().train()
    nn.init.zeros_(network.mask.logit.bias)  # p = 1/2; at the prior of a mask it is 0, and says nothing yet
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1e-2)
    for step in range(2):
        optimizer.zero_grad()
        (network(_images()).mask - 1).square().mean().backward()
        assert _gradient(network.confidence.correction)
        assert _gradient(network.confidence.of_means) == (step == 1)
        optimizer.step()
    output = network(_images())
    assert not torch.equal(output.mask, output.first_mask)


def test_probability_means_and_confidence_are_what_they_are_called():
    module = PixelConfidence()
    module.start_without_correction()
    z = torch.randn(2, 1, 20, 24, generator=torch.Generator().manual_seed(0)) * 3
    p = nn.functional.relu6(z + 3) / 6
    defective, sound = module.defective(z), module.sound(z)
    torch.testing.assert_close(defective / 6, p)
    torch.testing.assert_close(1 - 4 * p * (1 - p), 1 - defective * sound / 9)
    means = module.means(defective) / 6
    for index, window in enumerate(WINDOWS):
        # Beyond the edge p is 0, and it counts.
        expected = nn.functional.avg_pool2d(p, window, 1, window // 2, count_include_pad=True)
        torch.testing.assert_close(means[:, index : index + 1], expected)


def test_training_leaves_what_is_constant_alone():
    network = _network().train()
    module = network.confidence
    constants = [
        p.clone() for part in (module.defective, module.sound, module.means) for p in part.parameters()
    ]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.1)
    network(_images()).mask.square().mean().backward()
    optimizer.step()
    after = [p for part in (module.defective, module.sound, module.means) for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(constants, after, strict=True))


def test_a_gap_inside_a_defect_can_be_closed():
    """Told apart by their neighbourhoods: a gap of one cell in a defect, and the sound surface."""
    torch.manual_seed(0)
    module = PixelConfidence()
    initialise(module, {})
    module.start_without_correction()
    truth = torch.full((1, 1, 24, 24), -2.0)
    truth[..., 6:18, 6:18] = 2.0
    seen = truth.clone()
    seen[..., 6:18, 11] = -2.0
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 2e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (module(seen) - truth).square().mean().backward()
        optimizer.step()
    assert torch.equal(module(seen) > 0, truth > 0)


@pytest.mark.parametrize("config", [{"pixel_weight": -1}, {"sample_gradient": 2}, {"joined": True}])
def test_an_unknown_switch_or_a_value_out_of_range_is_named(config):
    with pytest.raises(InputError, match=next(iter(config))):
        _network(**config)
