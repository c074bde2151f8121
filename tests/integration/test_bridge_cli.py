"""The shipping verbs from the command line, on a real runtime: make keys, sign, install, test, go back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from bridge_artifacts import BundleOf, require_programs, write_artifact
from edge.backend import find_backend
from edge.cli import main
from firmware_bridge.keys import Keys


class Shell:
    """`edgeqc` in one folder; every path argument of the tests is relative to it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, line: str) -> int:
        try:
            code = main(line.split())
        except SystemExit as left:
            code = int(left.code or 0)
        self.out, self.err = self.capsys.readouterr()
        assert "Traceback" not in self.err
        return code

    def json(self, line: str, code: int = 0) -> Any:
        assert self(line + " --json") == code, self.err
        return json.loads(self.out)


@pytest.fixture
def edgeqc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


@pytest.fixture
def shop(edgeqc: Shell, keys: Keys, fake_runtime: None) -> str:
    """Two versions on onnxruntime, or the fake runtime where that is absent; returns the signing options."""
    require_programs("rauc", "mksquashfs", "unsquashfs", "openssl")
    for version in ("1", "2"):
        if find_backend("onnx").probe().usable:
            tiny.write_artifact(Path(f"A{version}"), "onnx", with_golden=True, version=version)
        else:
            write_artifact(Path(f"A{version}"), version)
    return f"--key {keys.signer_key} --cert {keys.signer}"


def test_the_whole_way(edgeqc: Shell, shop: str, keys: Keys) -> None:
    for version in ("1", "2"):
        facts = edgeqc.json(f"bundle A{version} {shop} --out {version}.raucb --keyring {keys.authority}")
        assert facts["version"] == version and facts["compatible"] == "edgeqc-test"
        assert facts["size_bytes"] == Path(f"{version}.raucb").stat().st_size

    first = edgeqc.json(f"flash 1.raucb local:store --keyring {keys.authority}")
    assert first["kept"] and first["slot"]["name"] == "a" and first["previous"] is None
    assert first["selftest"]["passed"] and not first["selftest"]["stand_in"]
    assert edgeqc("rollback store") == 2 and "nothing to roll back to" in edgeqc.err

    assert edgeqc(f"flash 2.raucb local:store --keyring {keys.authority}") == 0
    assert "2 is active in slot b" in edgeqc.out and "healthy" in edgeqc.out
    slots = edgeqc.json("slots store")
    assert slots["active"] == "b" and [s["state"] for s in slots["slots"]] == ["good", "good"]
    assert [s["version"] for s in slots["slots"]] == ["1", "2"]
    assert edgeqc("slots store") == 0 and "active, good" in edgeqc.out and "\x1b" not in edgeqc.out

    test = edgeqc.json("selftest --slots store")
    assert test["passed"] and test["checks"][0]["name"] == "slot" and test["artifact"]["version"] == "2"
    assert edgeqc.json("selftest store/active")["passed"]
    assert edgeqc.json("rollback store")["slot"]["version"] == "1"
    assert edgeqc.json("slots store")["active"] == "a"


def test_a_damaged_slot_is_found_told_and_repaired(edgeqc: Shell, shop: str, keys: Keys) -> None:
    for version in ("1", "2"):
        edgeqc(f"bundle A{version} {shop} --out {version}.raucb")
        edgeqc(f"flash {version}.raucb local:store --keyring {keys.authority}")
    for slot in ("a", "b"):
        model = Path(f"store/{slot}/model.onnx")
        data = bytearray(model.read_bytes())
        data[100] ^= 1
        model.write_bytes(data)
    test = edgeqc.json("selftest --slots store", code=3)
    assert [c["state"] for c in test["checks"][:3]] == ["pass", "FAIL", "not run"]
    kept = edgeqc.json("rollback store", code=3)
    assert not kept["kept"] and kept["slot"]["state"] == "bad" and "model.onnx" in kept["slot"]["reason"]
    assert edgeqc.json("slots store")["active"] == "b"
    assert edgeqc("slots store") == 0 and "slot a is bad: integrity" in edgeqc.out
    assert edgeqc(f"flash 1.raucb local:store --keyring {keys.authority}") == 0
    assert edgeqc.json("selftest --slots store")["artifact"]["version"] == "1"
    assert edgeqc("rollback store") == 3  # slot b is still damaged


def test_a_changed_manifest_in_a_slot_is_found(edgeqc: Shell, shop: str, keys: Keys) -> None:
    edgeqc(f"bundle A1 {shop} --out 1.raucb")
    edgeqc(f"flash 1.raucb local:store --keyring {keys.authority}")
    from edge.artifact import write_manifest

    manifest = json.loads(Path("store/a/manifest.json").read_text())
    manifest["decision"]["threshold"] += (
        100  # every part becomes good, and the manifest's own checksum is right
    )
    write_manifest(Path("store/a"), manifest)
    test = edgeqc.json("selftest --slots store", code=3)
    assert test["checks"][0]["name"] == "slot" and test["checks"][0]["state"] == "FAIL"


@pytest.mark.parametrize("behaviour", ["wrong", "crash", "raise"])
def test_a_new_version_that_fails_is_not_kept(
    edgeqc: Shell, bundle_of: BundleOf, keys: Keys, behaviour: str
) -> None:
    assert edgeqc(f"flash {bundle_of('1')} local:store --keyring {keys.authority}") == 0
    kept = edgeqc.json(f"flash {bundle_of('2', behaviour)} local:store --keyring {keys.authority}", code=3)
    assert not kept["kept"] and kept["slot"]["reason"]
    assert "what to do" in edgeqc.err and "slot a is still active" in edgeqc.err
    slots = edgeqc.json("slots store")
    assert slots["active"] == "a" and slots["slots"][1]["state"] == "bad"
    assert edgeqc.json("selftest --slots store")["artifact"]["version"] == "1"
    assert edgeqc("rollback store") == 2
    assert edgeqc(f"flash {bundle_of('3')} local:store --keyring {keys.authority}") == 0


def test_a_first_version_that_fails_leaves_no_active_slot(
    edgeqc: Shell, bundle_of: BundleOf, keys: Keys
) -> None:
    assert edgeqc(f"flash {bundle_of('2', 'wrong')} local:store --keyring {keys.authority}") == 3
    assert edgeqc.json("slots store")["active"] is None
    assert edgeqc("selftest --slots store") == 3 and "no slot is active" in edgeqc.out
    assert edgeqc("rollback store") == 2
    assert edgeqc(f"flash {bundle_of('1')} local:store --keyring {keys.authority}") == 0


def test_a_device_that_is_unplugged_is_missing_and_not_a_failure(
    edgeqc: Shell, bundle_of: BundleOf, keys: Keys
) -> None:
    for version in ("1", "2"):
        assert edgeqc(f"flash {bundle_of(version)} local:store --keyring {keys.authority}") == 0
    before = edgeqc.json("slots store")
    assert edgeqc(f"flash {bundle_of('3', 'no device')} local:store --keyring {keys.authority}") == 4
    assert "plug it in" in edgeqc.err
    assert edgeqc.json("slots store") == before
    assert edgeqc("rollback store") == 0


def test_a_stand_in_is_marked_wherever_it_shows(edgeqc: Shell, bundle_of: BundleOf, keys: Keys) -> None:
    stand_in = {"backend": "bridge-fake", "device": "cpu"}
    bundle = bundle_of("1", backend="bridge-absent", stand_in=stand_in)
    flash = f"flash {bundle} local:store --keyring {keys.authority}"
    assert edgeqc(flash) == 4 and not Path("store").exists()
    assert edgeqc(flash + " --stand-in") == 0 and "STAND-IN" in edgeqc.out
    assert edgeqc("slots store") == 0 and "active, good (stand-in)" in edgeqc.out
    assert edgeqc.json("slots store")["slots"][0]["stand_in"]
    assert edgeqc("selftest --slots store") == 4
    assert edgeqc.json("selftest --slots store --stand-in")["stand_in"]


@pytest.mark.parametrize(
    "line",
    [
        "slots nowhere",
        "rollback nowhere",
        "selftest nowhere",
        "selftest --slots nowhere",
        "selftest",
        "flash nothing.raucb local:store --keyring ca.pem",
        "flash nothing.raucb ftp:store --keyring ca.pem",
        "flash nothing.raucb local: --keyring ca.pem",
        "flash nothing.raucb store --keyring ca.pem",
        "flash nothing.raucb local:store",
        "bundle nowhere --key k --cert c --out b.raucb",
        "bundle nowhere",
        "keys",
    ],
)
def test_bad_usage_is_exit_2_and_leaves_nothing(edgeqc: Shell, line: str) -> None:
    assert edgeqc(line) == 2
    assert edgeqc.err and list(Path().iterdir()) == []


def test_keys_says_which_file_goes_where(edgeqc: Shell) -> None:
    require_programs("openssl")
    facts = edgeqc.json("keys K")
    assert facts["keyring"] == "K/ca.cert.pem" and "put this one on every camera" in edgeqc.err
    assert edgeqc("keys K") == 2
