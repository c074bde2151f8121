from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edge.cli import main
from edge.errors import InputError
from firmware_bridge.errors import BridgeError, ProgramMissingError
from firmware_bridge.keys import Keys, make_keys


def _text(certificate: Path) -> str:
    command = ["openssl", "x509", "-in", str(certificate), "-noout", "-text"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_private_keys_are_private_and_nothing_else_lies_there(keys: Keys) -> None:
    modes = {file.name: file.stat().st_mode & 0o777 for file in keys.folder.iterdir()}
    assert modes == {
        "ca.cert.pem": 0o644,
        "ca.key.pem": 0o600,
        "signer.cert.pem": 0o644,
        "signer.key.pem": 0o600,
    }


def test_the_signer_is_for_code_signing_only_and_the_authority_vouches_for_it(keys: Keys) -> None:
    signer, authority = _text(keys.signer), _text(keys.authority)
    assert "Code Signing" in signer and "CA:FALSE" in signer and "Digital Signature" in signer
    assert "CA:TRUE, pathlen:0" in authority and "Certificate Sign" in authority
    verify = ["openssl", "verify", "-CAfile", str(keys.authority), str(keys.signer)]
    subprocess.run(verify, check=True, capture_output=True)


def test_rsa_keys_are_made_too(tmp_path: Path, keys: Keys) -> None:
    made = make_keys(tmp_path / "rsa", algorithm="rsa", name="Line 3", days=10)
    assert "(3072 bit)" in _text(made.signer) and "CN = Line 3 signer" in _text(made.signer)


def test_existing_keys_are_never_overwritten(keys: Keys) -> None:
    before = keys.signer_key.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        make_keys(keys.folder)
    assert keys.signer_key.read_bytes() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithm": "dsa"},
        {"name": "a\nCN = b"},
        {"name": ""},
        {"name": "x" * 49},
        {"days": 0},
        {"days": 10**6},
    ],
)
def test_unusable_arguments_make_nothing(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InputError):
        make_keys(tmp_path / "keys", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_without_openssl_the_command_to_type_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissingError):
        make_keys(tmp_path / "keys")
    assert main(["keys", str(tmp_path / "keys")]) == 4
    assert "sudo apt-get install openssl" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_openssl_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin" / "openssl"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'no entropy' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:/usr/bin:/bin")
    with pytest.raises(BridgeError, match="genpkey") as caught:
        make_keys(tmp_path / "keys")
    assert caught.value.got == "no entropy"
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
