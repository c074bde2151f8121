"""Foreign MobileNetV2 weights compute the same function on raw pixels once they are in our encoder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edge.errors import InputError
from quantize.models import build
from quantize.pretrained import (
    TORCHVISION_EPSILON,
    TORCHVISION_MEAN,
    TORCHVISION_STD,
    conv_pairs,
    find_pretrained,
    initialise_encoder,
)
from quantize.tflite_weights import NotMobileNetError, read_tflite_encoder

PRETRAINED = Path(os.environ.get("EDGEQC_PRETRAINED") or Path(__file__).parents[3] / "shared" / "pretrained")


def network(channels=3, size="nano", seed=0):
    torch.manual_seed(seed)
    return build({"name": "sample-centric", "size": size, "channels": channels}).eval()


def pixels(channels=3, side=64, seed=5):
    return torch.randint(
        0, 256, (2, channels, side, side), generator=torch.Generator().manual_seed(seed)
    ).float()


def inside(features):
    """Away from the border: padding stands for another colour in every input convention."""
    return features[:, :, 6:-6, 6:-6]


def torchvision_state(model):
    """A random state dict of the kind that torchvision publishes, for an encoder of this width."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for pair in conv_pairs(model):
        shape = (
            pair.conv.weight.shape[0],
            3 if not state else pair.conv.weight.shape[1],
            *pair.conv.kernel_size,
        )
        state[f"{pair.conv_name}.weight"] = torch.randn(shape, generator=generator) * 0.3
        count = shape[0]
        state[f"{pair.norm_name}.weight"] = 1 + 0.2 * torch.randn(count, generator=generator)
        state[f"{pair.norm_name}.bias"] = 0.2 * torch.randn(count, generator=generator)
        state[f"{pair.norm_name}.running_mean"] = torch.randn(count, generator=generator)
        state[f"{pair.norm_name}.running_var"] = 0.5 + torch.rand(count, generator=generator)
    return state


@pytest.mark.parametrize("channels", [1, 3])
def test_a_torchvision_state_dict_computes_the_same_on_raw_pixels(tmp_path, channels):
    state = torchvision_state(network())
    torch.save(state, tmp_path / "weights.pth")
    ours = network(channels, seed=9)
    encoder, text = find_pretrained(ours, tmp_path / "weights.pth")
    assert encoder is not None and "weights.pth" in text
    initialise_encoder(ours, encoder, [])
    theirs = network(3, seed=8)
    theirs.encoder.load_state_dict(state, strict=False)
    for pair in conv_pairs(theirs):
        pair.norm.eps = TORCHVISION_EPSILON
    p = pixels(channels)
    mean = torch.tensor(TORCHVISION_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(TORCHVISION_STD).view(1, 3, 1, 1)
    with torch.no_grad():
        wanted = theirs.encoder.features[:2]((p.expand(-1, 3, -1, -1) / 255 - mean) / std)
        got = ours.encoder.features[:2]((p - 128) / 128)
    assert torch.allclose(inside(got), inside(wanted), atol=1e-4)
    assert inside(wanted).std() > 0.1  # or it would prove nothing


def test_safetensors_reads_like_pth(tmp_path):
    from safetensors.torch import save_file

    save_file(torchvision_state(network()), tmp_path / "weights.safetensors")
    encoder, _ = find_pretrained(network(), tmp_path)
    assert encoder is not None and encoder.stem_channels == 16


def test_the_width_chooses_the_file_of_a_folder(tmp_path):
    torch.save(torchvision_state(network(size="small")), tmp_path / "a_wide.pth")
    torch.save(torchvision_state(network(size="nano")), tmp_path / "b_narrow.pth")
    (tmp_path / "c_notes.txt").write_text("not weights")
    for size, name in (("small", "a_wide.pth"), ("nano", "b_narrow.pth")):
        encoder, _ = find_pretrained(network(size=size), tmp_path)
        assert encoder is not None and encoder.path.name == name


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.tflite", "weights.onnx"])
def test_a_damaged_or_foreign_file_is_named_with_its_reason(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\x01\x02TFL3 nonsense")
    with pytest.raises(InputError, match="no pretrained MobileNetV2 that fits") as error:
        find_pretrained(network(), tmp_path / name)
    assert name in str(error.value.got)


def test_a_file_of_another_width_is_refused_when_it_was_asked_for(tmp_path):
    torch.save(torchvision_state(network(size="small")), tmp_path / "wide.pth")
    with pytest.raises(InputError) as error:
        find_pretrained(network(size="nano"), tmp_path / "wide.pth")
    assert "32 channels" in error.value.got


def test_none_anywhere_is_from_scratch_and_said_so(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEQC_PRETRAINED", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encoder, text = find_pretrained(network(size="nano"))
    assert encoder is None and text.startswith("from scratch")


def test_a_download_is_kept_only_if_its_digest_is_right(tmp_path, monkeypatch):
    class Response:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self):
            return b"something else"

    monkeypatch.delenv("EDGEQC_PRETRAINED", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Response())
    encoder, text = find_pretrained(network(size="small"))
    assert encoder is None and "SHA-256" in text and not list(tmp_path.rglob("*.pth"))


def test_a_variable_that_points_nowhere_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQC_PRETRAINED", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="EDGEQC_PRETRAINED"):
        find_pretrained(network())


@pytest.fixture
def real_file():
    def find(name):
        path = PRETRAINED / name
        if not path.is_file():
            pytest.skip(f"no {path}: set EDGEQC_PRETRAINED to a folder that holds it")
        return path

    return find


def folded_network(encoder, x, blocks):
    """The file's own convolutions, run as they are: its stem and ``blocks`` inverted residuals."""
    convolutions = iter(encoder.convolutions)

    def run(x, stride=1, activate=True):
        conv = next(convolutions)
        weight, bias = torch.from_numpy(conv.weight), torch.from_numpy(conv.bias)
        groups = weight.shape[0] if conv.depthwise else 1
        y = functional.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)
        return functional.relu6(y) if activate else y

    x = run(x, stride=2)
    strides = (1, 2, 1, 2, 1, 1)
    for index in range(blocks):
        entry = x
        if index:
            x = run(x)
        x = run(x, stride=strides[index])
        x = run(x, activate=False)
        if entry.shape == x.shape:
            x = x + entry
    return x


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "name"),
    [("small", "tf2_mobilenet_v2_1.0_224_ptq.tflite"), ("nano", "deeplabv3_mnv2_dm05_pascal_quant.tflite")],
)
def test_a_tflite_file_computes_the_same_and_gets_its_batch_norm_back(real_file, size, name, channels):
    path = real_file(name)
    model = network(channels, size, seed=4)
    encoder, _ = find_pretrained(model, path)
    assert encoder is not None and encoder.folded is not None
    p = pixels(channels, side=128)
    images = (p - 128) / 128
    initialise_encoder(model, encoder, [images])
    file = read_tflite_encoder(path)
    theirs = (p.expand(-1, 3, -1, -1).double() - file.input_zero) * file.input_scale
    with torch.no_grad():
        got = model.encoder.features[:4](images)
        wanted = folded_network(file, theirs, blocks=3).float()
        inner, wanted = inside(got), inside(wanted)
    assert torch.allclose(inner, wanted, atol=0.02 * wanted.std().item()), (inner - wanted).abs().max()
    # Real statistics: those of the images that went through.
    seen = {}
    for index, pair in enumerate(conv_pairs(model)[:5]):
        pair.conv.register_forward_hook(lambda _m, _i, y, index=index: seen.__setitem__(index, y.detach()))
    with torch.no_grad():
        model(images)
    for index, pair in enumerate(conv_pairs(model)[:5]):
        assert torch.allclose(pair.norm.running_mean, seen[index].mean((0, 2, 3)), atol=1e-3)
        assert torch.allclose(pair.norm.weight, (pair.norm.running_var + pair.norm.eps).sqrt(), rtol=1e-4)


def test_a_truncated_tflite_is_refused(real_file, tmp_path):
    content = real_file("deeplabv3_mnv2_dm05_pascal_quant.tflite").read_bytes()
    (tmp_path / "half.tflite").write_bytes(content[: len(content) // 3])
    with pytest.raises(NotMobileNetError):
        read_tflite_encoder(tmp_path / "half.tflite")


def test_the_encoder_must_be_convolutions_with_batch_norm():
    model = nn.Module()
    model.encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    with pytest.raises(ValueError, match="no batch norm"):
        conv_pairs(model)


def test_reads_scales_per_channel(real_file):
    file = read_tflite_encoder(real_file("tf2_mobilenet_v2_1.0_224_ptq.tflite"))
    stem = file.convolutions[0].weight
    assert stem.shape == (32, 3, 3, 3) and 0.05 < np.abs(stem).max() < 20
    assert file.input_scale == pytest.approx(1 / 127.5, rel=1e-4)
