"""Foreign MobileNetV2 weights for our encoder, converted so that they compute the same on raw pixels.

Read: torchvision state dicts (``.pth``, ``.pt``, ``.safetensors``) and float or quantized ``.tflite`` files.
The source is ``--pretrained PATH``, else the folder in ``EDGEQC_PRETRAINED``, else the user's cache, else a
download of torchvision's published file where there is a network, else none.

Three conversions are made:

- *Input convention.* Our input is (p - 128)/128; the file's own is folded into its first layer, exactly.
- *Grey.* One channel stands for three equal ones, so the first layer's RGB weights are summed.
- *Folded batch norm.* A ``.tflite`` has none. It is opened again around the statistics of our training
  images, without changing the function, because a network that trains with it survives int8.

TensorFlow pads stride-2 layers at the right and bottom, ours on all sides: that only shifts the sampling
grid by a pixel.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.errors import InputError
from quantize.tflite_weights import NotMobileNetError, TfliteEncoder, read_tflite_encoder

SUFFIXES = (".pth", ".pt", ".safetensors", ".tflite")
VARIABLE = "EDGEQC_PRETRAINED"
PUBLISHED_URL = "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"
DOWNLOAD_TIMEOUT_S = 5.0
TORCHVISION_MEAN = (0.485, 0.456, 0.406)
TORCHVISION_EPSILON = 1e-5
TORCHVISION_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Encoder:
    """Weights of a foreign MobileNetV2: a torchvision-named state dict, or folded convolutions."""

    path: Path
    state: dict[str, Tensor] | None
    folded: TfliteEncoder | None

    @property
    def stem_channels(self) -> int:
        """Outputs of the first convolution: 32 at width 1.0, 16 at width 0.5."""
        if self.state is not None:
            return int(self.state["features.0.0.weight"].shape[0])
        assert self.folded is not None
        return int(self.folded.convolutions[0].weight.shape[0])


def find_pretrained(model: nn.Module, explicit: str | Path | None = None) -> tuple[Encoder | None, str]:
    """The weights that fit ``model``'s encoder, and one sentence on where they came from or why not.

    An explicit path (file or folder) that holds nothing fitting is an ``InputError``; the other places are
    looked through in turn.
    """
    wanted = conv_pairs(model)[0].conv.out_channels
    reasons: list[str] = []
    if explicit is not None:
        found = _search(Path(explicit), wanted, reasons)
        if found is None:
            raise InputError(
                f"no pretrained MobileNetV2 that fits in {explicit}",
                wanted=f"a first convolution of {wanted} channels in one of {', '.join(SUFFIXES)}",
                got="; ".join(reasons) or "nothing",
                next_step="name another file, another --size, or leave --pretrained away",
            )
        return found, f"pretrained encoder from {found.path}"
    variable = os.environ.get(VARIABLE)
    if variable and not Path(variable).exists():
        raise InputError(
            f"{VARIABLE} names a path that does not exist",
            wanted="a folder or file",
            got=variable,
            next_step=f"correct it or unset {VARIABLE}",
        )
    for place in ([Path(variable)] if variable else []) + [cache_folder()]:
        if place.exists():
            found = _search(place, wanted, reasons)
            if found is not None:
                return found, f"pretrained encoder from {found.path}"
    if wanted == 32:  # torchvision publishes width 1.0 only
        downloaded, reason = _download()
        if downloaded is not None:
            return _read(downloaded), f"pretrained encoder downloaded to {downloaded}"
        reasons.append(reason)
    else:
        reasons.append("no weights of this width are published")
    return None, "from scratch, no pretrained encoder: " + "; ".join(reasons)


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/edgeqc/pretrained`` or below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgeqc" / "pretrained"


def initialise_encoder(model: nn.Module, encoder: Encoder, images: Iterable[Tensor]) -> None:
    """Put ``encoder`` into ``model``'s encoder, in place.

    ``images`` are a few batches (float32 N x C x H x W, in (p - 128)/128) of training images; the statistics
    that re-open a folded batch norm are taken from them.
    """
    pairs = conv_pairs(model)
    if encoder.state is not None:
        _load_state(pairs, encoder.state, encoder.path)
    else:
        assert encoder.folded is not None
        _load_folded(pairs, encoder.folded, encoder.path)
        _open_batch_norm(model, pairs, images)


@dataclass(frozen=True)
class ConvPair:
    """A convolution of the encoder and the batch norm behind it, by torchvision's names."""

    conv_name: str
    conv: nn.Conv2d
    norm_name: str
    norm: nn.BatchNorm2d


def conv_pairs(model: nn.Module) -> list[ConvPair]:
    """The encoder's convolutions in the order in which they run, each with its batch norm."""
    encoder = model.get_submodule("encoder")
    pairs: list[ConvPair] = []
    pending: tuple[str, nn.Conv2d] | None = None
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            if pending is not None:
                raise ValueError(f"encoder convolution {pending[0]} has no batch norm behind it")
            pending = (name, module)
        elif isinstance(module, nn.BatchNorm2d):
            if pending is None:
                raise ValueError(f"encoder batch norm {name} has no convolution before it")
            pairs.append(ConvPair(*pending, name, module))
            pending = None
    if not pairs:
        raise ValueError("the model has no encoder of convolutions with batch norm")
    return pairs


def _search(place: Path, wanted: int, reasons: list[str]) -> Encoder | None:
    """The first fitting file in ``place``; why the others do not fit goes to ``reasons``."""
    if not place.exists():
        reasons.append(f"{place} does not exist")
        return None
    files = (
        [place]
        if place.is_file()
        else sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    )
    if not files:
        reasons.append(f"{place} holds no {', '.join(SUFFIXES)}")
    for file in files:
        try:
            encoder = _read(file)
        except NotMobileNetError as reason:
            reasons.append(f"{file.name}: {reason}")
            continue
        if encoder.stem_channels == wanted:
            return encoder
        reasons.append(f"{file.name} has {encoder.stem_channels} channels after its first convolution")
    return None


def _read(path: Path) -> Encoder:
    suffix = path.suffix.lower()
    if suffix == ".tflite":
        return Encoder(path, None, read_tflite_encoder(path))
    if suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Any = load_file(path)
        except SafetensorError as error:
            raise NotMobileNetError(f"not a readable safetensors file ({error})") from error
    elif suffix in (".pth", ".pt"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the unpickler trips over in bytes that are not its own
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise NotMobileNetError(f"not a readable torch file ({reason})") from error
    else:
        raise NotMobileNetError(f"unknown kind of file, wanted one of {', '.join(SUFFIXES)}")
    if not isinstance(state, dict) or "features.0.0.weight" not in state:
        raise NotMobileNetError("no features.0.0.weight, so not torchvision's MobileNetV2")
    return Encoder(path, state, None)


def _load_state(pairs: list[ConvPair], state: dict[str, Tensor], path: Path) -> None:
    for index, pair in enumerate(pairs):
        weight = _entry(state, f"{pair.conv_name}.weight", path)
        norm = {
            part: _entry(state, f"{pair.norm_name}.{part}", path)
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        if index == 0:
            scale = np.array([1 / (255 * std) for std in TORCHVISION_STD], dtype=np.float64)
            zero = np.array([255 * mean for mean in TORCHVISION_MEAN], dtype=np.float64)
            converted, offset = convert_input(weight.double().numpy(), scale, zero, pair.conv.in_channels)
            weight = torch.from_numpy(converted)
            norm["running_mean"] = norm["running_mean"].double() - torch.from_numpy(offset)
        _copy(pair.conv.weight, weight, f"{pair.conv_name}.weight", path)
        # Torchvision divides by sqrt(var + 1e-5), our norms by sqrt(var + their own epsilon).
        norm["running_var"] = (norm["running_var"] + TORCHVISION_EPSILON - pair.norm.eps).clamp_min(0)
        for part, value in norm.items():
            _copy(getattr(pair.norm, part), value, f"{pair.norm_name}.{part}", path)


def _load_folded(pairs: list[ConvPair], folded: TfliteEncoder, path: Path) -> None:
    """Put the folded convolutions in, the batch norms standing by: identity plus the convolution's bias."""
    if len(folded.convolutions) < len(pairs):
        raise InputError(
            f"{path} has {len(folded.convolutions)} convolutions", wanted=f"{len(pairs)} or more"
        )
    for index, (pair, conv) in enumerate(zip(pairs, folded.convolutions)):
        weight, bias = conv.weight, conv.bias
        if index == 0:
            scale, zero = np.full(3, folded.input_scale), np.full(3, folded.input_zero)
            weight, offset = convert_input(weight, scale, zero, pair.conv.in_channels)
            bias = bias + offset
        _copy(pair.conv.weight, torch.from_numpy(weight), pair.conv_name, path)
        with torch.no_grad():
            pair.norm.weight.fill_(1.0)
            pair.norm.bias.copy_(torch.from_numpy(bias))
            pair.norm.running_mean.zero_()  # type: ignore[union-attr]
            pair.norm.running_var.fill_(1.0 - pair.norm.eps)  # type: ignore[union-attr]


def convert_input(
    weight: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First-layer weights [O,3,kh,kw] on x' = scale * (p - zero), per colour, as weights on (p - 128)/128.

    Returns the weights [O,channels,kh,kw] and the constant [O] that has to be added to the layer's output
    (exact wherever the kernel does not reach over the border).
    """
    if weight.shape[1] != 3:
        raise NotMobileNetError(f"the first convolution has {weight.shape[1]} input channels, wanted 3")
    wide = weight.astype(np.float64)
    offset = (wide.sum(axis=(2, 3)) * (scale * (128 - zero))).sum(axis=1)
    ours = wide * (scale * 128)[None, :, None, None]
    if channels == 1:
        ours = ours.sum(axis=1, keepdims=True)
    return ours, offset


@torch.no_grad()
def _open_batch_norm(model: nn.Module, pairs: list[ConvPair], images: Iterable[Tensor]) -> None:
    """Turn each stand-by batch norm into a real one with the statistics of ``images``, function kept.

    With mean m and variance v of the convolution's output: running stats m and v, gain sqrt(v + eps), bias
    b + m, so that norm(y) = y + b as before.
    """
    count: dict[int, int] = {}
    sums: dict[int, Tensor] = {}
    squares: dict[int, Tensor] = {}

    def watch(index: int, output: Tensor) -> None:
        values = output.double()
        count[index] = count.get(index, 0) + values.numel() // values.shape[1]
        sums[index] = sums.get(index, torch.zeros(1)) + values.sum(dim=(0, 2, 3))
        squares[index] = squares.get(index, torch.zeros(1)) + values.square().sum(dim=(0, 2, 3))

    handles = [
        pair.conv.register_forward_hook(lambda _m, _i, output, index=index: watch(index, output))
        for index, pair in enumerate(pairs)
    ]
    training = model.training
    model.eval()
    try:
        for batch in images:
            model(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if len(count) != len(pairs):
        raise ValueError(f"{len(count)} of {len(pairs)} encoder convolutions ran: no images?")
    for index, pair in enumerate(pairs):
        mean = sums[index] / count[index]
        variance = (squares[index] / count[index] - mean.square()).clamp_min(0.0)
        pair.norm.bias += mean.to(pair.norm.bias)
        pair.norm.weight.copy_((variance + pair.norm.eps).sqrt())
        pair.norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        pair.norm.running_var.copy_(variance)  # type: ignore[union-attr]


def _entry(state: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in state:
        raise InputError(f"{path} has no {name}", wanted="torchvision's MobileNetV2")
    return state[name]


def _copy(target: Tensor, value: Tensor, name: str, path: Path) -> None:
    if target.shape != value.shape:
        raise InputError(
            f"{path}: {name} does not fit", wanted=str(tuple(target.shape)), got=str(tuple(value.shape))
        )
    with torch.no_grad():
        target.copy_(value)


def _download() -> tuple[Path | None, str]:
    """Fetch torchvision's published file into the cache; its name ends in the start of its SHA-256."""
    target = cache_folder() / PUBLISHED_URL.rsplit("/", 1)[1]
    try:
        with urllib.request.urlopen(PUBLISHED_URL, timeout=DOWNLOAD_TIMEOUT_S) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        return None, f"no download from {PUBLISHED_URL} ({error})"
    expected = target.stem.rsplit("-", 1)[1]
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(expected):
        return None, f"the download's SHA-256 is {digest[:8]}, wanted {expected}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        return None, f"the download cannot be kept in {target.parent} ({error})"
    return target, ""
