"""Fixtures of the whole suite. Needs numpy and pytest alone: a bare device can run the runtime's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything loads OpenMP. The tests' networks are tiny, and two threads of one test that wait for each other
# by spinning, beside another test on the same cores, are 30 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
pytest_plugins = ("bridge_artifacts",)

try:
    from hypothesis import settings
except ImportError:  # the property tests skip, saying so
    pass
else:
    # The same examples on every run: a test that fails now and then tells nobody anything.
    settings.register_profile("edgeqc", derandomize=True, deadline=None, database=None)
    settings.load_profile("edgeqc")


def pytest_addoption(parser):
    parser.addoption(
        "--require-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="a contract test that would skip because this backend is not usable fails instead",
    )


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The user's cache is not the tests' to fill, nor to be answered from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def shared(variable: str, name: str) -> Path:
    """A folder that is not in the repository: `$VARIABLE`, else ../shared/NAME beside the repository."""
    folder = Path(os.environ.get(variable) or ROOT.parent / "shared" / name)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set {variable}")
    return folder


@pytest.fixture(scope="session")
def mtd() -> Path:
    """The Magnetic-Tile-Defect photographs with `samples.csv`."""
    return shared("EDGEQC_MTD", "datasets/mtd")


@pytest.fixture(scope="session")
def ground_truth() -> Path:
    """Real quantized models and what Google's compiler mapped of each."""
    return shared("EDGEQC_GROUND_TRUTH", "edgetpu_ground_truth")


@pytest.fixture(scope="session")
def pretrained() -> Path:
    """Pretrained encoders."""
    return shared("EDGEQC_PRETRAINED", "pretrained")


@pytest.fixture
def make_artifact(tmp_path):
    """Write a tiny artifact (tests/tiny.py), return its folder: `make_artifact("openvino", name="other")`."""
    import tiny

    count = 0

    def make(target: str, **changes) -> Path:
        nonlocal count
        count += 1
        return tiny.write_artifact(tmp_path / f"artifact-{count}" / target, target, **changes)

    return make


@pytest.fixture
def fake_tensorrt(monkeypatch, tmp_path):
    """A machine with TensorRT and one GPU; returns (fake module, fake libcudart)."""
    import sys

    from edge.backends import _cuda
    from fakes import cudart
    from fakes import tensorrt as trt

    library = cudart.library()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(_cuda, "open_library", lambda: library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trt.Builder, "builds", 0)
    return trt, library


@pytest.fixture
def fake_edgetpu(monkeypatch):
    """A machine with one Edge TPU; returns the list of opened delegates."""
    from edge.backend import find_backend
    from fakes import edgetpu

    backend = find_backend("litert")
    if not backend.probe().usable:
        pytest.skip(backend.probe().reason)
    return edgetpu.plug_in(monkeypatch, backend.sdk())
