"""A user's own network, the one of docs/own-network.md: trained, taken as it is, exported; and what is refused."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")
pytest.importorskip("torchao", reason="the integer grid needs torchao")

from edge import cli  # noqa: E402
from edge.folders import sha256  # noqa: E402
from edge.inspector import open_inspector  # noqa: E402
from quantize.run import open_run  # noqa: E402
from tiny_run import write_dataset  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
QUICK = ("--input-size", "32", "--batch-size", "8", "--accelerator", "cpu", "--precision", "32-true")


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def weights(tmp_path):
    """A state dict of the page's U-Net whose batch norms have seen something."""
    from unet import build

    torch.manual_seed(0)
    network = build(1).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(8, 1, 32, 32) * 0.4)
    torch.save(network.state_dict(), tmp_path / "unet.pt")
    return tmp_path / "unet.pt"


def train(data, out, *words):
    return cli.main(["train", "--data", str(data), "--out", str(out), *QUICK, *map(str, words)])


def network(folder, name, body, head=""):
    """A module with a function `build` whose network's layers and forward pass are `body`."""
    text = f"""
        import torch
        from torch import nn
        from torch.nn import functional as F
        {head}

        class Network(nn.Module):
            def __init__(self, channels):
                super().__init__()
                self.features = nn.Conv2d(channels, 4, 3, stride=2, padding=1)
                self.mask = nn.Conv2d(4, 1, 1)
                self.norm = nn.BatchNorm2d(4)
                self.linear = nn.Linear(4, 1)

            def verdict(self, x):
                return self.mask(x.mean((2, 3), keepdim=True)).flatten(1)

            def forward(self, x):
                x = self.features(x)
        """
    lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    whole = (
        f"{textwrap.dedent(text).rstrip()}\n{lines}\n\n\ndef build(channels):\n    return Network(channels)\n"
    )
    (folder / f"{name}.py").write_text(whole)
    return f"{name}:build"


def line_of(file, code):
    """`FILE:LINE` of `code`, as the messages name it."""
    return f"{file}:{file.read_text().splitlines().index(' ' * 8 + code) + 1}"


@pytest.mark.slow
def test_weights_as_they_are_become_a_run_that_exports(data, weights, tmp_path):
    out = tmp_path / "run"
    assert train(data, out, "--model", "unet:build", "--weights", weights, "--epochs", 0) == 0
    run = open_run(out)
    assert run.model_config == {"name": "unet:build", "channels": 1} and run.digest == sha256(run.weights)
    given, kept = torch.load(weights, weights_only=True), run.load_model().state_dict()
    assert given.keys() == kept.keys() and all(torch.equal(given[name], kept[name]) for name in given)
    assert (
        run.facts["training"]["epochs_done"] == 0
        and json.loads((out / "metrics.json").read_text())["val"]["n"]
    )

    for target in ("openvino", "edgetpu"):
        artifact = tmp_path / target
        words = ["export", out, "--target", target, "--data", data, "--out", artifact, "--calibration", 16]
        assert cli.main(list(map(str, words))) in (0, 3)  # what noise decides may flip
        kept_at = artifact if artifact.exists() else artifact.with_name(f"{target}.rejected")
        with open_inspector(kept_at, stand_in=True) as device, open_inspector(out) as reference:
            step = next(o.scale for o in device.session.outputs if o.name == "defect") or 0.1
            frame = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
            assert abs(device.inspect(frame).score - reference.inspect(frame).score) < 12 * step


@pytest.mark.slow
def test_fine_tuning_moves_the_weights_and_says_what_it_started_from(data, weights, tmp_path):
    out = tmp_path / "run"
    assert train(data, out, "--model", "unet:build", "--weights", weights, "--epochs", 1) == 0
    run = open_run(out)
    assert not torch.equal(
        torch.load(weights, weights_only=True)["mask.weight"], run.load_model().mask.weight
    )
    training = run.facts["training"]
    assert training["rate"] == training["encoder_rate"] and training["balance"]["kind"] == "fixed"
    assert sha256(weights)[:12] in training["pretrained"]


MISFITS = {
    "sigmoid": ("mask = torch.sigmoid(self.mask(x))", "outputs are logits"),
    "silu": ("x = F.silu(x); mask = self.mask(x)", "nn.ReLU6"),
    "leaky_relu": ("x = F.leaky_relu(x); mask = self.mask(x)", "nn.ReLU6"),
    "cat": ("mask = self.mask(torch.cat([x, x], 1)[:, :4])", "a sum: a convolution for each"),
    "upsample_bilinear2d": ('mask = self.mask(F.interpolate(x, scale_factor=2, mode="bilinear"))', "nearest"),
    "avg_pool2d": ("mask = self.mask(F.avg_pool2d(x, 2))", "x.mean((2, 3), keepdim=True)"),
    "linear": (
        "mask = self.mask(x) + self.linear(x.mean((2, 3)))[:, :, None, None]",
        "nn.Conv2d(inputs, outputs, 1)",
    ),
    "group_norm": ("mask = self.mask(F.group_norm(x, 2))", "nn.BatchNorm2d"),
    "mul": ("mask = self.mask(x * 2)", "the constant in the weights"),
}


@pytest.mark.parametrize("operation", MISFITS)
def test_an_operation_without_a_place_is_named_with_its_line_and_its_replacement(
    data, tmp_path, capsys, operation
):
    code, instead = MISFITS[operation]
    name = network(tmp_path, f"misfit_{operation}", f"{code}\nreturn self.verdict(x), mask")
    assert train(data, tmp_path / "out", "--model", name) == 2
    message = capsys.readouterr().err
    assert f"aten.{operation}." in message and instead in message
    line = line_of(tmp_path / f"misfit_{operation}.py", code)
    assert re.search(re.escape(line) + r"\b", message) and "Traceback" not in message
    assert not list(tmp_path.glob("out*"))


def test_all_misfits_are_named_at_once(data, tmp_path, capsys):
    body = "x = F.silu(x)\nx = F.gelu(x)\nfor _ in range(2):\n    x = F.mish(x)\nreturn self.verdict(x), self.mask(x)"
    assert train(data, tmp_path / "out", "--model", network(tmp_path, "misfits", body)) == 2
    message = capsys.readouterr().err
    assert "3 operations have no place" in message and all(
        f"aten.{n}." in message for n in ("silu", "gelu", "mish")
    )


def test_a_form_that_a_target_lacks_is_named_with_its_line_too(tmp_path):
    from edge.preprocess import InputSpec
    from quantize import models
    from targets.errors import UnsupportedOpError
    from targets.lowering import Network
    from targets.onnx_graph import onnx_model

    code = "x = F.max_pool2d(x, 3, 2, 1)"
    made = models.build(
        {"name": network(tmp_path, "padded", f"{code}\nreturn self.verdict(x), self.mask(x)"), "channels": 1}
    )
    spec = InputSpec(32, 32, 1, "nchw", "float32", "centered_float")
    with pytest.raises(UnsupportedOpError) as caught:
        onnx_model(Network(made, spec, np.zeros((1, 32, 32, 1), np.uint8)), "fp32")
    assert line_of(tmp_path / "padded.py", code) in str(caught.value)


def test_dropouts_and_batch_norms_anywhere_are_no_obstacle(tmp_path):
    from quantize import models
    from quantize.models import own

    body = "x = F.dropout2d(F.dropout(F.relu(self.norm(x)), 0.5, self.training), 0.5, self.training)"
    name = network(tmp_path, "dropouts", f"{body}\nx = self.norm(x)\nreturn self.verdict(x), self.mask(x)")
    own.check(models.build({"name": name, "channels": 3}), (3, 32, 48))


def test_a_sequential_that_is_read_in_between_is_not_folded_wrongly(tmp_path):
    from edge.errors import InputError
    from quantize import models
    from quantize.models import own

    body = """
        y = self.pair[0](x)
        x = self.pair[1](y) + y
        return self.verdict(x), self.mask(x)
    """
    name = network(tmp_path, "tapped", textwrap.dedent(body))
    made = models.build({"name": name, "channels": 1})
    made.pair = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4))
    torch.nn.init.constant_(made.pair[1].weight, 3.0)
    with pytest.raises(InputError, match="without changing the network's answers"):
        own.check(made, (1, 32, 32))


REFUSED = {
    "three_outputs": ("return self.verdict(x), self.mask(x), x", "3 outputs: float32 [2, 1]"),
    "one_output": ("return self.mask(x)", "float32 [2, 1, 16, 16]"),
    "wrong_order": (
        "return self.mask(x), self.verdict(x)",
        "2 outputs: float32 [2, 1, 16, 16], float32 [2, 1]",
    ),
    "ragged_stride": ("return self.verdict(x), self.mask(x)[:, :, :-1]", "[2, 1, 15, 16]"),
    "labels": ("return self.verdict(x) > 0, self.mask(x)", "bool [2, 1]"),
    "only_in_training": (
        "if self.training:\n    return self.mask(x)\nreturn self.verdict(x), self.mask(x)",
        "in training mode",
    ),
    "branch_on_pixels": (
        "if x.mean() > 0:\n    x = x + x\nreturn self.verdict(x), self.mask(x)",
        "torch.export cannot make a graph",
    ),
    "dynamic_shape": (
        "x = x[:, :, : max(16, int(x.sum()))]\nreturn self.verdict(x), self.mask(x)",
        "torch.export cannot make a graph",
    ),
    "raises": ("return self.verdict(x), self.mask(x.reshape(3, -1))", "refused_raises.py:"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_network_that_breaks_the_contract_is_refused(data, tmp_path, capsys, what):
    body, named = REFUSED[what]
    assert train(data, tmp_path / "out", "--model", network(tmp_path, f"refused_{what}", body)) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("edgeqc train:") == 1 and "Traceback" not in message
    assert not list(tmp_path.glob("out*"))


def test_a_name_that_leads_nowhere_says_how_far_it_got(data, tmp_path, capsys):
    (tmp_path / "broken_syntax.py").write_text("def build(channels:\n")
    (tmp_path / "broken_import.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "no_network.py").write_text(
        "value = 3\ndef build(channels): return 'network'\ndef bare(): pass\n"
    )
    for name, named in {
        "nowhere.at.all:build": "PYTHONPATH=",
        "broken_syntax:build": "broken_syntax.py, line 1",
        "broken_import:build": "broken_import.py:1",
        "no_network:missing": "no function missing",
        "no_network:value": "a int",
        "no_network:build": "got:    str",
        "no_network:bare": "positional argument",
        "unet:": "package.module:function",
    }.items():
        assert train(data, tmp_path / "out", "--model", name) == 2
        message = capsys.readouterr().err
        assert named in message and "Traceback" not in message, (name, message)


def spoil_nan(state):
    state["up1.conv.conv2.weight"][0] = float("nan")
    return state


def spoil_version(state):
    state["encoder.weight"] = state.pop("mask.weight")
    return state


def spoil_shape(state):
    return {**state, "mask.weight": torch.zeros(1, 4, 1, 1)}


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_nan, "NaN or infinity in up1.conv.conv2.weight"),
        (spoil_version, "mask.weight is missing, encoder.weight is not in the network"),
        (spoil_shape, "mask.weight is (1, 4, 1, 1), in the network (1, 8, 1, 1)"),
        (lambda state: {"epoch": 3, "model": state}, "a dict of epoch, model"),
        (lambda state: torch.nn.Conv2d(1, 1, 1), "cannot be read as weights"),
    ],
    ids=["nan", "version", "shape", "checkpoint", "pickled-network"],
)
def test_weights_that_are_not_the_networks_are_refused(data, weights, tmp_path, capsys, spoil, named):
    torch.save(spoil(torch.load(weights, weights_only=True)), weights)
    words = ("--model", "unet:build", "--weights", weights, "--epochs", 0)
    assert train(data, tmp_path / "out", *words) == 2
    message = capsys.readouterr().err
    assert named in message and "Traceback" not in message and not list(tmp_path.glob("out*"))


def test_files_that_are_no_weights_are_refused(data, tmp_path, capsys):
    (tmp_path / "half.safetensors").write_bytes(b"{}")
    for file, named in {"half.safetensors": "cannot be read", "none.pt": "there are no weights"}.items():
        words = ("--model", "unet:build", "--weights", tmp_path / file, "--epochs", 0)
        assert train(data, tmp_path / "out", *words) == 2
        assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--epochs", "0"), "nothing is learned"),
        (("--model", "unet:build", "--epochs", "0"), "nothing is learned"),
        (("--weights", "unet.pt"), "network of your own"),
        (("--qat", "RUN0", "--weights", "unet.pt"), "--weights"),
        (("--model", "unet:build", "--pretrained", "x.pth"), "--pretrained"),
        (("--model", "unet:build", "--size", "nano"), "size: options of edgeqc"),
        (("--model", "unet:build", "--weak"), "--weak"),
    ],
)
def test_options_that_contradict_each_other(data, tmp_path, capsys, words, named):
    assert train(data, tmp_path / "out", *words) == 2
    assert named in capsys.readouterr().err and not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_a_run_whose_code_has_moved_or_changed_is_refused(data, weights, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(data, out, "--model", "unet:build", "--weights", weights, "--epochs", 0) == 0
    facts = json.loads((out / "run.json").read_text())
    capsys.readouterr()
    for name, named in {"gone:build": "PYTHONPATH=", "changed:build": "another version"}.items():
        (tmp_path / "changed.py").write_text(
            "from torch import nn\ndef build(channels): return nn.Conv2d(1, 1, 1)\n"
        )
        (out / "run.json").write_text(json.dumps({**facts, "model": {"name": name, "channels": 1}}))
        assert cli.main(["evaluate", str(out), "--data", str(data), "--split", "val"]) == 2
        assert named in capsys.readouterr().err
