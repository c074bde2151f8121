"""A network of the user's own, named `package.module:function`: imported, filled with weights, and checked.

`function(channels: int) -> nn.Module` makes a network that takes float32 [N, C, H, W] in (p - 128) / 128 and
answers `(defect, mask)`, logits [N, 1] and [N, 1, h, w], in training mode and in eval mode alike
(docs/own-network.md).
"""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge.errors import InputError
from quantize.capture import first_line, raised_at
from quantize.models.batch_norm import fold_batch_norm
from quantize.quiet import quiet

FORM = "package.module:function"
# Of the largest logit; folding costs float32 rounding, a wrong fold costs everything.
FOLDING_TOLERANCE = 1e-3


def is_own(name: str) -> bool:
    """Whether `name` means a network of the user's own and not one of `quantize.models`."""
    return ":" in name


def build(name: str, channels: int) -> nn.Module:
    """Import and call the function that `name` means.

    Raises:
        InputError: no such module or function, an error in it, or what it returns is no `nn.Module`.
    """
    path, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in path.split(".")):
        raise InputError("this names no network of your own", wanted=FORM, got=name)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise _broken(f"the module {path} cannot be imported", error) from error
        raise InputError(
            f"there is no module {error.name} for the network {name}",
            wanted="a module that Python can import",
            got=first_line(error),
            next_step="install it, or name the folder that it is in: PYTHONPATH=FOLDER edgeqc ...",
        ) from error
    except Exception as error:  # importing runs the user's code
        raise _broken(f"the module {path} cannot be imported", error) from error
    make = getattr(module, function, None)
    if not callable(make):
        raise InputError(
            f"the module {path} has no function {function}",
            wanted=f"{function}(channels: int) -> nn.Module",
            got=f"{module.__file__} without it" if make is None else f"a {type(make).__name__}",
        )
    try:
        network = make(channels)
    except Exception as error:  # the user's code
        raise _broken(f"{name} did not make a network of {channels} channels", error) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{name} returns no network",
            wanted="nn.Module",
            got=type(network).__name__,
            next_step="end the function with `return Network(...)`",
        )
    return network


def load_weights(network: nn.Module, file: Path) -> None:
    """Fill `network` with the state dict in `file`, ``.safetensors`` or torch's own, which may not run code.

    Raises:
        InputError: no state dict can be read, or it is of another network or another version of it.
    """
    state = _read(file)
    wanted = network.state_dict()
    differences = [f"{name} is missing" for name in wanted if name not in state] + [
        f"{name} is not in the network" for name in state if name not in wanted
    ]
    differences += [
        f"{name} is {tuple(state[name].shape)}, in the network {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if differences:
        raise InputError(
            f"{file} is not of this network, or of another version of it",
            wanted=f"its {len(wanted)} tensors",
            got=_some(differences),
            next_step="save network.state_dict() of the very code that --model names",
        )
    network.load_state_dict(state)


def check(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse what could be trained but not shipped, before time is spent on it. `shape` is (C, H, W).

    Raises:
        InputError: weights that are not finite, other outputs than the contract's, or a wrong fold.
        QuantizeError: no graph can be made of it, or an operation has no place on the integer grid.
    """
    with quiet():  # torchao speaks of accelerators that nobody asked for
        from quantize.grid import refuse_misfits

    spoiled = [
        name
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if spoiled:
        raise InputError(
            "the network's weights are not finite numbers",
            wanted="finite weights",
            got=f"NaN or infinity in {_some(spoiled)}",
            next_step="its training diverged: take an earlier checkpoint",
        )
    with torch.random.fork_rng(devices=[]):
        check_outputs(copy.deepcopy(network).train(), shape, count=2)
        check_outputs(copy.deepcopy(network).eval(), shape, count=2)
        torch.manual_seed(0)
        image = torch.rand(1, *shape) * 2 - 1
    folded = fold_batch_norm(network, shape)
    refuse_misfits(folded, shape)
    with torch.inference_mode():
        for before, after in zip(copy.deepcopy(network).eval()(image), folded(image)):
            if float((after - before).abs().max()) > FOLDING_TOLERANCE * (1 + float(before.abs().max())):
                raise InputError(
                    "batch norm cannot be folded without changing the network's answers",
                    wanted="in a nn.Sequential every module reads the one before it, and nothing else does",
                    next_step="write convolution and batch norm as attributes: self.norm(self.conv(x))",
                )


def check_outputs(network: nn.Module, shape: tuple[int, int, int], count: int = 1) -> tuple[Tensor, Tensor]:
    """What `network` answers to `count` mid-grey images of `shape` (C, H, W): `defect` and `mask`.

    Raises:
        InputError: it raises, or its answer is not what the contract says.
    """
    mode = "training" if network.training else "eval"
    try:
        with torch.no_grad():
            answer = network(torch.zeros(count, *shape, device=_device(network)))
    except Exception as error:  # the user's code
        raise _broken(f"the network fails on images of {shape} in {mode} mode", error) from error
    if not _fits(answer, shape, count):
        raise InputError(
            f"the network's answer in {mode} mode is not verdict and mask",
            wanted=f"(defect, mask): logits [{count}, 1] and [{count}, 1, {shape[1]}/s, {shape[2]}/s]"
            " with a whole stride s",
            got=_describe(answer),
            next_step="return two tensors from forward, in this order",
        )
    return answer[0], answer[1]


def _fits(answer: Any, shape: tuple[int, int, int], count: int) -> bool:
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return False
    if not all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in answer):
        return False
    defect, mask = answer
    if tuple(defect.shape) != (count, 1) or mask.ndim != 4 or tuple(mask.shape[:2]) != (count, 1):
        return False
    height, width = mask.shape[2:]
    stride = shape[1] // height if height else 0
    return stride > 0 and (height * stride, width * stride) == shape[1:]


def _describe(answer: Any) -> str:
    if isinstance(answer, Tensor):
        return f"{str(answer.dtype).removeprefix('torch.')} {list(answer.shape)}"
    if isinstance(answer, (tuple, list)):
        return f"{len(answer)} outputs: " + ", ".join(_describe(item) for item in answer)
    return type(answer).__name__


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise InputError(f"there are no weights {file}", wanted="a .safetensors or .pt file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the reader trips over in bytes that are not its own
        raise InputError(
            f"{file} cannot be read as weights",
            wanted="a state dict: tensors and nothing that has to run",
            got=first_line(error)[:200],
            next_step="torch.save(network.state_dict(), FILE)",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        got = (
            f"a dict of {_some([str(key) for key in state])}"
            if isinstance(state, dict)
            else type(state).__name__
        )
        raise InputError(
            f"{file} holds more, or other, than a state dict",
            wanted="names and tensors",
            got=got,
            next_step="torch.save(network.state_dict(), FILE)",
        )
    return state


def _broken(what: str, error: Exception) -> InputError:
    return InputError(what, got=first_line(error) + raised_at(error), next_step="correct the network's code")


def _some(items: list[str]) -> str:
    return ", ".join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
