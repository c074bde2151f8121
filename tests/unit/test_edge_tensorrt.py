"""The TensorRT backend without a GPU: engine cache, memory, and the fake against NVIDIA's own bindings."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import tiny
from edge import Artifact, open_inspector
from edge.backend import find_backend
from edge.backends import _cuda, _engine
from edge.errors import BackendUnavailableError, IncompatibleArtifactError, InferenceError
from fakes import cudart
from fakes import tensorrt as fake


@pytest.fixture
def rtx():
    """NVIDIA's parser and builder, which run without a GPU."""
    return pytest.importorskip(
        "tensorrt_rtx_bindings", reason="NVIDIA's parser and builder are not installed"
    )


@pytest.fixture
def artifact(make_artifact):
    return make_artifact("tensorrt")


def surface(module) -> list[str]:
    """`Class`, `Class.attribute` and `function` for every public name that the fake has."""
    names = []
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        names.append(name)
        if inspect.isclass(value):
            names += [f"{name}.{key}" for key in vars(value) if not key.startswith("_")]
    return names


def test_fake_has_no_name_that_nvidia_lacks(rtx):
    bookkeeping = {"Builder.builds", "INetworkDefinition.onnx"}
    for name in set(surface(fake)) - bookkeeping:
        value = rtx
        for part in name.split("."):
            assert hasattr(value, part), f"TensorRT has no {name}"
            value = getattr(value, part)


def test_nvidia_accepts_and_builds_what_we_hand_over(rtx, artifact):
    plan = _engine.build(rtx, rtx.Logger(rtx.Logger.WARNING), Artifact.open(artifact))
    assert len(plan) > 1000


def test_nvidia_s_refusal_is_translated(rtx, artifact):
    (artifact / "model.onnx").write_bytes(b"no onnx")
    with pytest.raises(IncompatibleArtifactError) as caught:
        _engine.build(rtx, rtx.Logger(rtx.Logger.ERROR), Artifact.open(artifact, verify=False))
    assert "does not accept" in str(caught.value)


def test_precision_that_this_tensorrt_has_no_switch_for(rtx, make_artifact):
    path = make_artifact("tensorrt", precision="fp8")
    with pytest.raises(IncompatibleArtifactError, match="precision fp8"):
        _engine.build(rtx, rtx.Logger(rtx.Logger.ERROR), Artifact.open(path))


def load(path):
    return find_backend("tensorrt").load(Artifact.open(path))


def test_engine_is_built_once_and_kept_in_the_user_s_cache(fake_tensorrt, artifact, tmp_path):
    pytest.importorskip("onnxruntime")
    load(artifact).close()
    load(artifact).close()
    assert fake.Builder.builds == 1
    (kept,) = (tmp_path / "cache" / "edgeqc" / "tensorrt").iterdir()
    assert kept.suffix == ".engine"


@pytest.mark.parametrize("what", ["version", "gpu", "precision", "model"])
def test_engine_of_another_version_gpu_precision_or_model_is_not_used(
    fake_tensorrt, artifact, make_artifact, monkeypatch, what
):
    pytest.importorskip("onnxruntime")
    load(artifact).close()
    if what == "version":
        monkeypatch.setattr(fake, "__version__", "10.7.0")
    elif what == "gpu":
        monkeypatch.setattr(cudart, "GPU", b"Another GPU")
    elif what == "precision":
        artifact = make_artifact("tensorrt", precision="fp32")
    else:
        before = _engine.engine_file(fake, Artifact.open(artifact), "Fake Orin")
        with (artifact / "model.onnx").open("ab") as stream:
            stream.write(b"\x32\x00")  # an empty doc_string: other bytes, the same network
        assert _engine.engine_file(fake, Artifact.open(artifact, verify=False), "Fake Orin") != before
        return
    load(artifact).close()
    assert fake.Builder.builds == 2


def test_damaged_cache_is_built_again(fake_tensorrt, artifact, tmp_path):
    pytest.importorskip("onnxruntime")
    load(artifact).close()
    (kept,) = (tmp_path / "cache" / "edgeqc" / "tensorrt").iterdir()
    kept.write_bytes(b"half an engi")
    with open_inspector(artifact) as inspector:
        assert inspector.inspect(tiny.frame()).defective
    assert fake.Builder.builds == 2
    assert kept.read_bytes().startswith(b"fake engine")


def test_close_releases_all_device_memory(fake_tensorrt, artifact):
    pytest.importorskip("onnxruntime")
    _, library = fake_tensorrt
    session = load(artifact)
    assert len(library.live) == 3
    session.close()
    assert library.live == {}


def test_failing_cuda_call_is_one_clear_error(fake_tensorrt, artifact):
    pytest.importorskip("onnxruntime")
    _, library = fake_tensorrt
    with open_inspector(artifact) as inspector:
        library.cudaMemcpyAsync = lambda *arguments: 700
        with pytest.raises(InferenceError, match="cudaMemcpyAsync") as caught:
            inspector.inspect(tiny.frame())
    assert "fake error 700" in str(caught.value)


def test_no_gpu_is_unavailable(fake_tensorrt, artifact, monkeypatch):
    monkeypatch.setattr(_cuda, "open_library", lambda: cudart.library(gpus=0))
    assert not find_backend("tensorrt").probe().usable
    with pytest.raises(BackendUnavailableError):
        load(artifact)


def test_missing_cuda_library_is_unavailable(artifact, monkeypatch):
    monkeypatch.setattr(_cuda, "LIBRARIES", ("libthere-is-no-such.so",))
    with pytest.raises(BackendUnavailableError, match="CUDA"):
        _cuda.open_library()


def test_session_runs_on_its_own_gpu_from_any_thread(fake_tensorrt, artifact):
    pytest.importorskip("onnxruntime")
    _, library = fake_tensorrt
    selected = []
    with load(artifact) as session:
        library.cudaSetDevice = lambda index: selected.append(index) or 0
        session.run({"input": np.zeros((1, 1, 32, 32), np.float32)})
    assert selected == [0]


def test_cache_folder_follows_the_user(monkeypatch, tmp_path):
    from edge.backends._cache import cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder("tensorrt") == tmp_path / "x" / "edgeqc" / "tensorrt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("tensorrt") == tmp_path / "home" / ".cache" / "edgeqc" / "tensorrt"
    assert not list(cache_folder("tensorrt").iterdir())
