"""One suite over every backend: whatever registers has to pass it. Skips say what `probe` says.

`--require-backend NAME` turns the skip of a backend into a failure, for a machine that is meant to have it.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tiny
from edge import Artifact, open_inspector
from edge.artifact import write_manifest
from edge.backend import Probe, backends
from edge.errors import (
    BackendUnavailableError,
    EdgeError,
    IncompatibleArtifactError,
    InferenceError,
    InputError,
)
from edge.folders import sha256

# --- the backend


@pytest.mark.parametrize("name", backends())
def test_probe_says_why_and_what_fixes_it(name):
    probe = backends()[name].probe()
    assert isinstance(probe, Probe)
    assert probe.reason
    if probe.usable:
        assert probe.sdk and probe.version and probe.devices
    else:
        assert probe.fix


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError("no library"), InputError("odd")])
@pytest.mark.parametrize("name", backends())
def test_probe_never_raises(name, error, monkeypatch):
    backend = backends()[name]

    def broken(self):
        raise error

    monkeypatch.setattr(type(backend), "_probe", broken)
    probe = backend.probe()
    assert not probe.usable
    assert str(error) in probe.reason


@pytest.mark.parametrize("name", backends())
def test_missing_sdk_names_the_install_command(name, monkeypatch, make_artifact):
    backend = backends()[name]
    for module in backend.sdk_modules:
        monkeypatch.setitem(sys.modules, module, None)
    probe = backend.probe()
    assert not probe.usable
    assert probe.fix == backend.install
    with pytest.raises(BackendUnavailableError) as caught:
        backend.load(Artifact.open(make_artifact(name)))
    assert caught.value.exit_code == 4
    assert backend.install in str(caught.value)
    if backend.extra:
        assert f"edgeqc[{backend.extra}]" in str(caught.value)
        assert f"`{backend.extra}`" in str(caught.value)


@pytest.mark.parametrize("name", backends())
def test_artifact_of_another_backend_is_refused(name, make_artifact):
    other = "onnx" if name != "onnx" else "openvino"
    with pytest.raises(IncompatibleArtifactError) as caught:
        backends()[name].load(Artifact.open(make_artifact(other)))
    assert name in str(caught.value) and other in str(caught.value)


def test_file_of_another_backend_is_refused(case):
    model = case.path / Artifact.open(case.path).manifest["model"]
    model.write_bytes((tiny.FILES / case.other_file).read_bytes())
    write_manifest(case.path, Artifact.open(case.path, verify=False).manifest)
    with pytest.raises(IncompatibleArtifactError) as caught:
        case.load()
    assert str(model) in str(caught.value)


def test_model_cut_in_half_is_refused(case):
    model = case.path / Artifact.open(case.path).manifest["model"]
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    write_manifest(case.path, Artifact.open(case.path, verify=False).manifest)
    with pytest.raises(IncompatibleArtifactError):
        case.load()


@pytest.mark.parametrize(
    "change", [{"outputs": {"defect": {"name": "other"}, "mask": {"name": "mask"}}}, {"input": 16}]
)
def test_manifest_that_does_not_fit_the_file_is_refused(case, change):
    if "input" in change:
        manifest = Artifact.open(case.path).manifest
        change = {"input": {**manifest["input"], "width": 16, "height": 16}}
    path = case.make(case.target, compiled=case.target == "edgetpu", **change)
    with pytest.raises(IncompatibleArtifactError):
        case.load(path)


@pytest.mark.parametrize("device", ["nonsense", "cpu:x", "cuda:99", "edgetpu:99"])
def test_unknown_device_is_refused(case, device):
    with pytest.raises(EdgeError) as caught:
        case.backend.load(Artifact.open(case.path), device)
    assert caught.value.exit_code in (2, 4)


# --- the session


def test_outputs_are_defect_and_mask(case):
    with case.load() as session:
        assert [spec.name for spec in session.outputs] == ["defect", "mask"]
        outputs = session.run(case.feed(tiny.noise()))
        assert set(outputs) == {"defect", "mask"}
        for spec in session.outputs:
            assert outputs[spec.name].shape == spec.shape
            assert outputs[spec.name].dtype == spec.dtype
            assert (spec.scale is None) == spec.dtype.startswith("float")


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_the_network_s(case, seed):
    frame = tiny.noise(seed)
    logit, mask = tiny.expected(frame)
    step = tiny.OUTPUT_SCALE if case.backend.name == "litert" else 1e-4
    with open_case(case) as inspector:
        assert abs(inspector.inspect(frame).score - logit) <= step
        outputs = inspector.session.run(case.feed(frame))
        got = inspector._logits(outputs, "mask")
        assert np.abs(got - mask).max() <= step


def open_case(case, **changes):
    path = case.make(case.target, compiled=case.target == "edgetpu", **changes) if changes else case.path
    return open_inspector(path)


def test_results_are_deterministic(case):
    feed = case.feed(tiny.noise())
    with case.load() as session:
        first = {name: array.tobytes() for name, array in session.run(feed).items()}
        session.run(case.feed(tiny.noise(1)))
        again = {name: array.tobytes() for name, array in session.run(feed).items()}
    assert first == again


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a.astype(np.float64),
        lambda a: a[..., :-1].copy(),
        lambda a: a.reshape(-1),
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a.tolist(),
        lambda a: None,
    ],
    ids=["dtype", "size", "rank", "strided", "list", "none"],
)
def test_wrong_feeds_are_refused(case, spoil):
    feed = case.feed(tiny.noise())
    (name,) = feed
    with case.load() as session:
        with pytest.raises(InputError) as caught:
            session.run({name: spoil(feed[name])})
        assert name in str(caught.value)
        assert session.run(feed)  # and the session still works


def test_missing_and_extra_feeds_are_refused(case):
    feed = case.feed(tiny.noise())
    with case.load() as session:
        with pytest.raises(InputError):
            session.run({})
        with pytest.raises(InputError, match="does not have"):
            session.run({**feed, "other": np.zeros(1, np.uint8)})


def test_the_caller_s_arrays_are_never_written(case):
    frame = tiny.noise()
    frame.setflags(write=False)
    before = frame.tobytes()
    with open_case(case) as inspector:
        inspector.inspect(frame)
        feed = case.feed(frame)
        for array in feed.values():
            array.setflags(write=False)
        inspector.session.run(feed)
    assert frame.tobytes() == before


def test_close_is_idempotent_and_final(case):
    session = case.load()
    feed = case.feed(tiny.noise())
    session.close()
    session.close()
    with pytest.raises(InferenceError, match="closed"):
        session.run(feed)


def test_ran_on_says_where(case):
    with case.load() as session:
        ran_on = session.ran_on
    assert ran_on.device and ran_on.sdk and ran_on.version and ran_on.processor
    assert ran_on.stand_in is False


def test_start_and_wait_are_run(case):
    feed = case.feed(tiny.noise())
    with case.load() as session:
        once = {name: array.copy() for name, array in session.run(feed).items()}
        twice = session.wait(session.start(feed))
        for name, array in once.items():
            np.testing.assert_array_equal(array, twice[name])


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (31, 57), (480, 640), (1, 1), (32, 32, 3), (45, 70, 3)])
def test_frames_of_any_size(case, size):
    with open_case(case) as inspector:
        inspection = inspector.inspect(tiny.noise(size=size))
    assert inspection.mask.shape == size[:2]
    assert inspection.mask.dtype == bool
    assert inspection.verdict in ("good", "defective")


def test_tiles_see_what_one_resized_frame_would_lose(case):
    frame = np.full((96, 160), 64, np.uint8)
    frame[64:68, 132:136] = 255
    with open_case(case, framing={"mode": "tile", "overlap": 8}) as inspector:
        inspection = inspector.inspect(frame)
    assert inspection.defective
    rows, columns = np.nonzero(inspection.mask)
    assert abs(rows.mean() - 65.5) < 2 and abs(columns.mean() - 133.5) < 2
    with open_case(case) as inspector:
        assert not inspector.inspect(frame).defective


def test_two_sessions_side_by_side(case):
    feeds = [case.feed(tiny.frame("defective")), case.feed(tiny.frame("good"))]
    with case.load() as alone:
        wanted = [{name: array.copy() for name, array in alone.run(feed).items()} for feed in feeds]
    start = threading.Barrier(2)

    def work(index: int) -> bool:
        with case.load() as session:
            start.wait(timeout=30)
            return all(
                np.array_equal(array, wanted[index][name])
                for _ in range(100)
                for name, array in session.run(feeds[index]).items()
            )

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, (0, 1))) == [True, True]


def test_loading_writes_nothing_into_the_working_directory(case, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = {file.name: sha256(file) for file in case.path.iterdir()}
    with open_case(case) as inspector:
        inspector.inspect(tiny.noise())
    assert list(here.iterdir()) == []
    assert {file.name: sha256(file) for file in case.path.iterdir()} == before
