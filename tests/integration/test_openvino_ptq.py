"""OpenVINO's own quantizer as a candidate: it runs on the runtime in int8, and says nothing on standard output."""

from __future__ import annotations

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("nncf")
nn = torch.nn

from benchmarks.quantization import int8_share  # noqa: E402
from edge.preprocess import InputSpec  # noqa: E402
from targets import openvino, openvino_ptq  # noqa: E402
from targets.errors import TargetError  # noqa: E402
from targets.lowering import Network  # noqa: E402
from targets.profile import load_profile  # noqa: E402

SIDE = 32


class _Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU6()
        )
        self.mask = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        mask = self.mask(self.layers(x))
        return mask.mean((2, 3), keepdim=True).flatten(1), mask


@pytest.fixture
def network():
    tiles = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, 1), np.uint8)
    return Network(_Small().eval(), InputSpec(SIDE, SIDE, 1), tiles)


@pytest.mark.parametrize("profile", ["intel-n100", "x86-64-without-vnni"])
def test_it_is_int8_and_near_to_full_precision(profile, network, tmp_path, capsys):
    lowered = openvino.lower(network, "nncf", tmp_path, load_profile(profile, "openvino"))
    assert capsys.readouterr().out == ""
    assert lowered.output_step is None  # its integers are nobody else's
    model = tmp_path / lowered.model
    assert int8_share(model) >= 0.9
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        for tile in network.tiles[:4]:
            x = (torch.from_numpy(tile).permute(2, 0, 1)[None].float() - 128) / 128
            wanted = network.folded(x)[1].numpy()
            found = compiled([tile.transpose(2, 0, 1)[None]])["mask"]
            assert np.abs(found - wanted).max() < 0.1 * np.ptp(wanted)


def test_without_it_the_error_says_what_to_install(network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(TargetError, match=r"edgeqc\[toolkit\]"):
        openvino_ptq.quantized_by_nncf(None, network, saturates=False)
