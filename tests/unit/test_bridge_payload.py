from __future__ import annotations

from pathlib import Path

import pytest

from bridge_artifacts import write_artifact
from edge.artifact import Artifact
from firmware_bridge import payload
from firmware_bridge.bundle import default_compatible, rejection

pytestmark = pytest.mark.usefixtures("fake_runtime")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact.open(write_artifact(tmp_path / "artifact"))


def test_the_same_artifact_gives_the_same_bytes_and_comes_back(tmp_path: Path, artifact: Artifact) -> None:
    payload.pack(artifact, tmp_path / "one.tar")
    for file in artifact.path.iterdir():
        file.touch(mode=0o600)
    payload.pack(artifact, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    payload.unpack(tmp_path / "one.tar", tmp_path / "back")
    back = Artifact.open(tmp_path / "back")
    payload.check_listed(back)
    assert back.digest == artifact.digest


def test_only_listed_files_travel(tmp_path: Path, artifact: Artifact) -> None:
    (artifact.path / "notes.txt").write_text("my password")
    payload.pack(artifact, tmp_path / "one.tar")
    assert b"password" not in (tmp_path / "one.tar").read_bytes()


def test_every_file_and_folder_is_flushed(
    tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    payload.pack(artifact, tmp_path / "one.tar")
    flushed = set()
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.add(Path(f"/proc/self/fd/{handle}").readlink()))
    payload.unpack(tmp_path / "one.tar", tmp_path / "back")
    assert flushed == {tmp_path / "back", *(tmp_path / "back").rglob("*")}


@pytest.mark.parametrize(
    ("gate", "rejected"),
    [
        ({"passed": True}, False),
        ({"passed": True, "stand_in": True}, False),
        ({"passed": False, "reasons": ["flips 11 %"]}, True),
        ({"passed": "yes"}, True),
        ({}, True),
        (None, True),
    ],
)
def test_what_counts_as_rejected(tmp_path: Path, gate: object, rejected: bool) -> None:
    assert (rejection(Artifact.open(write_artifact(tmp_path / "a", gate=gate))) is not None) == rejected


def test_the_kind_of_device_comes_from_the_profile(tmp_path: Path) -> None:
    named = Artifact.open(write_artifact(tmp_path / "a", profile={"name": "coral-usb"}))
    nameless = Artifact.open(write_artifact(tmp_path / "b", profile={}))
    assert default_compatible(named) == "edgeqc-coral-usb" and default_compatible(nameless) == "edgeqc-onnx"
