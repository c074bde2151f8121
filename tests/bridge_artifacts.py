"""Fixtures of the bridge's tests: keys, artifacts on the fake runtime, signed bundles, and power cuts."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from edge.artifact import Artifact, write_manifest
from firmware_bridge.bundle import make_bundle
from firmware_bridge.keys import Keys, make_keys
from firmware_bridge.selftest import ABSENT, FAIL, PASS, Check, SelfTest

_ENTRY_POINTS = """\
[edgeqc.backends]
bridge-fake = bridge_runtime:BridgeRuntime
bridge-absent = bridge_runtime:BridgeAbsent
"""
CUT = 77


def require_programs(*names: str) -> None:
    """Skip where a system program is missing."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: sudo apt-get install rauc squashfs-tools openssl")


@pytest.fixture(scope="session")
def fake_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Register the fake backends as a third party would: a distribution with entry points."""
    place = tmp_path_factory.mktemp("distribution")
    info = place / "bridge_runtime-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bridge-runtime\nVersion: 1\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)
    paths = [str(place), str(Path(__file__).parent)]
    sys.path[:0] = paths
    yield
    for path in paths:
        sys.path.remove(path)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The trusted keys."""
    require_programs("openssl")
    return make_keys(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture(scope="session")
def strangers_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Keys of somebody else, with the same names in the certificates."""
    require_programs("openssl")
    return make_keys(tmp_path_factory.mktemp("keys") / "theirs")


def write_artifact(folder: Path, version: str = "1", behaviour: str = "ok", **facts: Any) -> Path:
    """An artifact on the fake runtime, with true golden vectors even where it is to misbehave."""
    facts = {"backend": "bridge-fake", "version": version, "name": "part", **facts}
    real = {"backend": "bridge-fake"} if facts["backend"] == "bridge-absent" else {}
    tiny.write_artifact(folder, "onnx", with_golden=True, behaviour="ok", **{**facts, **real})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(behaviour=behaviour, backend=facts["backend"])
    manifest.update({key: value for key, value in facts.items() if key == "golden"})
    write_manifest(folder, manifest)
    return folder


BundleOf = Callable[..., Path]


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, fake_runtime: None, keys: Keys) -> BundleOf:
    """Make (once) the signed bundle of an artifact with this version and behaviour."""
    require_programs("rauc", "mksquashfs", "unsquashfs")
    made: dict[tuple[str, ...], Path] = {}

    def make(version: str = "1", behaviour: str = "ok", compatible: str = "camera", **facts: Any) -> Path:
        key = (version, behaviour, compatible, repr(sorted(facts.items())))
        if key not in made:
            place = tmp_path_factory.mktemp("bundle")
            artifact = write_artifact(place / "artifact", version, behaviour, **facts)
            made[key] = make_bundle(
                artifact,
                place / "bundle.raucb",
                key=str(keys.signer_key),
                cert=str(keys.signer),
                compatible=compatible,
                allow_rejected=True,
            ).path
        return made[key]

    return make


def quick_prove(folder: Path, device: str | None, stand_in: bool) -> SelfTest:
    """A self-test without a process: integrity, and whether the artifact is of the good sort."""
    behaviour = Artifact.open(folder).manifest["behaviour"]
    state = {"ok": PASS, "no device": ABSENT}.get(behaviour, FAIL)
    return SelfTest(str(folder), (Check("load", state, "as told", "as told"),))


_CHANGES = {
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
    "shutil.copyfile",
    "tempfile.mkstemp",
    "subprocess.Popen",
}


def cut_power(at: int | None, action: Callable[[], Any]) -> int:
    """Run `action` in a forked process that dies right before its `at`-th change to the disk.

    Returns:
        0: it ended; CUT: it was killed; 2: it raised an EdgeError.
    """
    from edge.errors import EdgeError

    process = os.fork()
    if process == 0:
        code = 99
        try:
            if at is not None:
                _die_at(at)
            action()
            code = 0
        except EdgeError:
            code = 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _die_at(at: int) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event in _CHANGES or writes:
            seen += 1
            if seen == at:
                os._exit(CUT)

    sys.addaudithook(hook)
