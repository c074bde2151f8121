"""Damaged and foreign artifacts on every verb that opens one: one clear message, the right exit code, nothing
half-written.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from edge import cli
from edge.artifact import MANIFEST, Artifact, write_manifest
from edge.backend import find_backend
from edge.errors import DigestMismatchError, EdgeError

VERBS = ("run", "predict", "bench")


@pytest.fixture
def artifact(make_artifact):
    for name in ("onnx", "openvino", "litert"):
        if find_backend(name).probe().usable:
            return make_artifact(name, with_golden=True)
    return pytest.skip("no backend is usable here")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "a.npy", tiny.frame())
    (folder / "samples.csv").write_text("image,mask,defective,split\na.npy,,1,test\n")
    return folder


@pytest.fixture
def refused(capsys, data, tmp_path):
    """Call a verb on an artifact; it has to leave with this exit code, one message and no file."""

    def call(verb: str, path: Path, *, code: int = 2, said: str = "", extra: tuple[str, ...] = ()) -> str:
        out = tmp_path / "out"
        arguments = {
            "run": [
                "run",
                path,
                data,
                "--sink",
                f"jsonl:{out / 'lines.jsonl'}",
                "--overlays",
                out / "overlays",
            ],
            "predict": ["predict", path, "--data", data, "--split", "test", "--out", out / "p.npz"],
            "bench": ["bench", path, "--frames", "1", "--json", out / "bench.json"],
        }[verb]
        assert cli.main([str(argument) for argument in [*arguments, *extra]]) == code
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        assert stderr.count(f"edgeqc {verb}: ") == 1
        assert "Traceback" not in stderr
        assert said in stderr
        assert not out.exists() or not list(out.rglob("*"))
        return stderr

    return call


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda a: a / "nowhere", "no artifact folder"),
        (lambda a: (a / MANIFEST).unlink(), f"has no {MANIFEST}"),
        (lambda a: (a / MANIFEST).write_bytes(b""), "not readable as JSON"),
        (lambda a: (a / MANIFEST).write_bytes((a / MANIFEST).read_bytes()[:-40]), "not readable as JSON"),
        (lambda a: (a / MANIFEST).write_bytes(b"\xff\xfe{}"), "not readable as JSON"),
        (lambda a: (a / MANIFEST).write_bytes(b"[" * 100_000), "not readable as JSON"),
        (lambda a: (a / MANIFEST).write_text("[]"), "names no format"),
        (lambda a: (a / MANIFEST).write_text('{"format": 1}'), "names no format"),
        (lambda a: (a / MANIFEST).write_text('{"format": "edgeqc-artifact/9"}'), "runtime does not know"),
        (lambda a: (a / MANIFEST).write_text('{"format": "edgeqc-artifact/1"}'), "not the file that"),
        (lambda a: model(a).unlink(), "lacks a file"),
        (lambda a: model(a).write_bytes(model(a).read_bytes()[:-1]), "wrong size"),
        (lambda a: model(a).write_bytes(b""), "wrong size"),
        (lambda a: (a / "golden.npz").unlink(), "lacks a file"),
    ],
)  # fmt: skip
def test_damaged_artifacts_are_refused(refused, artifact, verb, damage, said):
    path = damage(artifact)
    refused(verb, path if isinstance(path, Path) else artifact, said=said)


def model(folder: Path) -> Path:
    return folder / Artifact.open(folder, verify=False).manifest["model"]


@pytest.mark.parametrize("stride", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_every_changed_byte_of_every_file_is_seen(artifact, stride):
    """One byte at a time; the manifest's own included."""
    for file in sorted(artifact.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), stride):
            changed = bytearray(whole)
            changed[place] ^= 1 << (place % 8)
            file.write_bytes(bytes(changed))
            with pytest.raises(EdgeError) as caught:
                Artifact.open(artifact)
            assert caught.value.exit_code == 2
            assert str(file) in str(caught.value)
        file.write_bytes(whole)
    Artifact.open(artifact)


@pytest.mark.parametrize("verb", VERBS)
def test_a_changed_byte_is_refused_on_every_verb(refused, artifact, verb):
    for file in sorted(artifact.iterdir()):
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 0x10
        file.write_bytes(bytes(changed))
        refused(verb, artifact, said=str(file))
        file.write_bytes(whole)


def test_truncation_at_any_length_is_seen(artifact):
    for file in sorted(artifact.iterdir()):
        whole = file.read_bytes()
        for length in range(0, len(whole), max(len(whole) // 50, 1)):
            file.write_bytes(whole[:length])
            with pytest.raises(EdgeError):
                Artifact.open(artifact)
        file.write_bytes(whole)


@pytest.mark.parametrize(
    "path", ["../outside.bin", "/etc/passwd", "a/../../outside.bin", "..\\outside.bin", "", ".", "a\\b"]
)
def test_paths_that_leave_the_folder_are_refused(refused, artifact, path):
    """Even with a manifest whose digests are all in order: who wrote it may have meant harm."""
    (artifact.parent / "outside.bin").write_bytes(b"x")
    manifest = json.loads((artifact / MANIFEST).read_bytes())
    forge(
        artifact,
        {**manifest, "files": [*manifest["files"], {"path": path, "bytes": 1, "sha256": tiny_digest()}]},
    )
    for verb in VERBS:
        refused(verb, artifact)


def tiny_digest() -> str:
    import hashlib

    return hashlib.sha256(b"x").hexdigest()


def forge(folder: Path, manifest: dict) -> None:
    """Write a manifest of any content with a valid digest of itself."""
    from edge import artifact as module
    from edge.folders import json_bytes

    data = json_bytes({**manifest, "manifest_sha256": "0" * 64})
    place = next(module._CHECKSUM_FIELD.finditer(data))
    (folder / MANIFEST).write_bytes(
        data[: place.start(1)] + module._checksum(data, place) + data[place.end(1) :]
    )


@pytest.mark.parametrize(
    "entry",
    [
        "x",
        None,
        [],
        {},
        {"path": ["x"]},
        {"path": "x", "bytes": "many", "sha256": "0"},
        {"path": "x", "bytes": 1},
    ],
)
def test_malformed_file_entries_are_refused(refused, artifact, entry):
    manifest = json.loads((artifact / MANIFEST).read_bytes())
    forge(artifact, {**manifest, "files": [*manifest["files"], entry]})
    for verb in VERBS:
        refused(verb, artifact)


def test_symbolic_links_are_refused(artifact):
    file = model(artifact)
    elsewhere = artifact.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(EdgeError, match="lacks a file"):
        Artifact.open(artifact)


@pytest.mark.parametrize("verb", VERBS)
def test_file_of_another_backend_is_refused(refused, artifact, verb):
    own = Artifact.open(artifact).backend
    foreign = "model.onnx" if own != "onnx" else "model.tflite"
    model(artifact).write_bytes((tiny.FILES / foreign).read_bytes())
    write_manifest(artifact, Artifact.open(artifact, verify=False).manifest)
    refused(verb, artifact, said=str(model(artifact)))


@pytest.mark.parametrize("verb", VERBS)
def test_another_backend_s_name_is_refused(refused, artifact, verb):
    other = "openvino" if Artifact.open(artifact).backend != "openvino" else "onnx"
    refused(verb, artifact, said=f"not for backend `{other}`", extra=("--backend", other))


@pytest.mark.parametrize("verb", VERBS)
def test_backend_that_nobody_has_is_exit_4(refused, artifact, verb):
    write_manifest(artifact, {**Artifact.open(artifact).manifest, "backend": "abacus"})
    refused(verb, artifact, code=4, said="abacus")


@pytest.mark.parametrize("verb", VERBS)
def test_missing_accelerator_is_exit_4_and_never_the_cpu(refused, make_artifact, verb, monkeypatch):
    from edge.backends import _edgetpu

    monkeypatch.setattr(_edgetpu, "open_library", lambda: None)
    said = refused(verb, make_artifact("edgetpu", compiled=True), code=4)
    assert "edgetpu" in said or "litert" in said


@pytest.mark.parametrize("verb", VERBS)
def test_device_that_does_not_exist(refused, artifact, verb):
    code = 4 if Artifact.open(artifact).backend == "openvino" else 2
    refused(verb, artifact, code=code, extra=("--device", "nonsense:7"))


def test_network_that_answers_nan_is_an_error_not_good(make_artifact):
    """NaN >= threshold is False; a broken network must not pass every part."""
    if not find_backend("onnx").probe().usable:
        pytest.skip("onnxruntime is not installed")
    from edge import open_inspector
    from edge.errors import InferenceError

    with open_inspector(make_artifact("onnx")) as inspector:
        run = inspector.session._run
        inspector.session._run = lambda feeds: {k: v * np.float32("nan") for k, v in run(feeds).items()}
        with pytest.raises(InferenceError, match="not a number"):
            inspector.inspect(tiny.frame())


def test_digest_mismatch_is_its_own_error(artifact):
    file = model(artifact)
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(bytes(changed))
    with pytest.raises(DigestMismatchError, match="sha256"):
        Artifact.open(artifact)
