"""The Edge TPU through its delegate: it runs there, or it is an error; the CPU never takes its place."""

from __future__ import annotations

import sys

import pytest

import tiny
from edge import open_inspector
from edge.backend import find_backend
from edge.backends import _edgetpu
from edge.errors import BackendUnavailableError, IncompatibleArtifactError


def test_delegate_gets_the_device_s_number(fake_edgetpu, make_artifact):
    with open_inspector(make_artifact("edgetpu", compiled=True)) as inspector:
        assert inspector.session.ran_on.device == "edgetpu:0"
        assert not inspector.session.ran_on.stand_in
        assert inspector.inspect(tiny.frame()).defective
    assert [delegate.options for delegate in fake_edgetpu] == [{"device": ":0"}]


def test_probe_lists_the_devices(fake_edgetpu):
    assert find_backend("litert").probe().devices == ("cpu", "edgetpu:0")


def test_file_that_was_not_compiled_is_refused(fake_edgetpu, make_artifact):
    """The delegate would take nothing of it, and all of it would run on the CPU."""
    with pytest.raises(IncompatibleArtifactError, match="not compiled"):
        open_inspector(make_artifact("edgetpu"))


def test_compiled_file_is_refused_on_the_cpu(make_artifact):
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(IncompatibleArtifactError, match="does not run on the CPU"):
        open_inspector(make_artifact("edgetpu", compiled=True), stand_in=True)


@pytest.mark.parametrize("library", [None, 0])
def test_absent_device_is_exit_4_and_names_the_fix(make_artifact, monkeypatch, library):
    if not find_backend("litert").probe().usable:
        pytest.skip("no LiteRT here")
    from fakes import edgetpu

    found = None if library is None else edgetpu.library(library)
    monkeypatch.setattr(_edgetpu, "open_library", lambda: found)
    with pytest.raises(BackendUnavailableError) as caught:
        open_inspector(make_artifact("edgetpu", compiled=True))
    assert caught.value.exit_code == 4
    assert "libedgetpu1-std" in str(caught.value)


def test_device_that_does_not_open_is_exit_4(fake_edgetpu, make_artifact, monkeypatch):
    backend = find_backend("litert")

    def refuse(*arguments):
        raise ValueError("Failed to load delegate from libedgetpu.so.1")

    monkeypatch.setattr(backend.sdk(), "load_delegate", refuse)
    with pytest.raises(BackendUnavailableError, match="cannot be opened"):
        open_inspector(make_artifact("edgetpu", compiled=True))


def test_stand_in_is_never_implied(make_artifact):
    if not find_backend("litert").probe().usable:
        pytest.skip("no LiteRT here")
    path = make_artifact("edgetpu")
    with pytest.raises(IncompatibleArtifactError, match="--stand-in"):
        open_inspector(path, device="cpu")
    with open_inspector(path, stand_in=True) as inspector:
        assert inspector.session.ran_on.stand_in
        assert inspector.session.ran_on.device == "cpu"


def test_google_s_pycoral_brings_its_interpreter(monkeypatch, make_artifact, tmp_path):
    """A device where nothing but Google's PyCoral is installed."""
    backend = find_backend("litert")
    if not backend.probe().usable:
        pytest.skip("no LiteRT here")
    monkeypatch.setitem(sys.modules, "the_interpreter", backend.sdk())
    (tmp_path / "pycoral" / "utils").mkdir(parents=True)
    (tmp_path / "pycoral" / "__init__.py").write_text("")
    (tmp_path / "pycoral" / "utils" / "__init__.py").write_text("")
    (tmp_path / "pycoral" / "utils" / "edgetpu.py").write_text("import the_interpreter as tflite")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("pycoral", "pycoral.utils", "pycoral.utils.edgetpu"):
        forget(monkeypatch, module)
    for module in backend.sdk_modules:
        monkeypatch.setitem(sys.modules, module, None)
    with open_inspector(make_artifact("litert")) as inspector:
        assert inspector.inspect(tiny.frame()).defective


def forget(monkeypatch, module: str) -> None:
    """Take a module out of `sys.modules`, before the test and after it."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, module)
