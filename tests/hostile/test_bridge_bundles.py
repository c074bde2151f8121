"""Bundles from people, transports and disks that do not mean well. Nothing of them may be used."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from bridge_artifacts import BundleOf, quick_prove, write_artifact
from edge.artifact import Artifact, write_manifest
from edge.cli import main
from edge.errors import ArtifactError, BackendUnavailableError, EdgeError, InputError
from firmware_bridge import payload
from firmware_bridge.bundle import PAYLOAD, extract, make_bundle
from firmware_bridge.errors import FlashError, SignatureError, SlotError
from firmware_bridge.flash import flash
from firmware_bridge.keys import Keys, make_keys
from firmware_bridge.slots import GOOD, SlotStore

_MANIFEST = """\
[update]
compatible={compatible}
version=1
[bundle]
format={format}
[image.model]
filename={filename}
"""


@pytest.fixture
def store(tmp_path: Path, bundle_of: BundleOf, keys: Keys) -> SlotStore:
    """A store with version 1 active."""
    flash(bundle_of("1"), tmp_path / "store", keys.authority, prove=quick_prove)
    return SlotStore.open(tmp_path / "store")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): (
            str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def refused(
    store: SlotStore, bundle: Path, keyring: Path, kind: type[EdgeError], **options: Any
) -> EdgeError:
    """Flash must raise `kind` and leave the store to the byte as it was."""
    before = snapshot(store.path)
    with pytest.raises(kind) as caught:
        flash(bundle, store.path, keyring, prove=quick_prove, **options)
    assert snapshot(store.path) == before and not store.staging.exists()
    return caught.value


def sign(content: Path, out: Path, keys: Keys) -> Path:
    """What somebody with the right key, and bad luck or intentions, could sign."""
    command = ["rauc", "bundle", f"--cert={keys.signer}", f"--key={keys.signer_key}"]
    command += ["--mksquashfs-args=-noD -noF -no-sparse", str(content), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def bundle_with(tmp_path: Path, keys: Keys, members: Callable[[tarfile.TarFile], None]) -> Path:
    """A well-signed bundle whose artifact.tar is written by `members`."""
    content = tmp_path / "content"
    content.mkdir()
    with tarfile.open(content / PAYLOAD, "w:") as tar:
        members(tar)
        add(tar, "padding", bytes(9000))
    (content / "manifest.raucm").write_text(
        _MANIFEST.format(compatible="camera", format="verity", filename=PAYLOAD)
    )
    return sign(content, tmp_path / "crafted.raucb", keys)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"x", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data) if member.isreg() else None)


def test_another_signer_is_refused_even_under_the_same_name(
    store: SlotStore, tmp_path: Path, strangers_keys: Keys, keys: Keys, fake_runtime: None
) -> None:
    theirs = make_bundle(
        write_artifact(tmp_path / "a"), tmp_path / "b.raucb", compatible="camera",
        key=str(strangers_keys.signer_key), cert=str(strangers_keys.signer),
    )  # fmt: skip
    error = refused(store, theirs.path, keys.authority, SignatureError)
    assert error.exit_code == 2 and "another authority" in str(error)


def test_a_certificate_of_the_authority_that_is_not_for_code_signing_is_refused(
    store: SlotStore, tmp_path: Path, keys: Keys, fake_runtime: None
) -> None:
    request, cert = tmp_path / "request.pem", tmp_path / "web.pem"
    openssl = ["openssl", "req", "-new", "-subj", "/CN=web server", "-key", str(keys.signer_key)]
    subprocess.run([*openssl, "-out", str(request)], check=True, capture_output=True)
    openssl = ["openssl", "x509", "-req", "-in", str(request), "-CA", str(keys.authority)]
    openssl += ["-CAkey", str(keys.authority_key), "-set_serial", "7", "-days", "9", "-out", str(cert)]
    subprocess.run(openssl, check=True, capture_output=True)
    artifact = write_artifact(tmp_path / "a")
    signing: dict[str, Any] = {"key": str(keys.signer_key), "cert": str(cert), "compatible": "camera"}
    bundle = make_bundle(artifact, tmp_path / "b.raucb", **signing)
    assert "code-signing" in str(refused(store, bundle.path, keys.authority, SignatureError))
    with pytest.raises(
        SignatureError, match="could not sign"
    ):  # and with the keyring it is seen before it travels
        make_bundle(artifact, tmp_path / "c.raucb", keyring=keys.authority, **signing)
    assert not (tmp_path / "c.raucb").exists()


def test_an_expired_certificate_points_at_the_clock(
    store: SlotStore, bundle_of: BundleOf, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firmware_bridge import bundle as bundles
    from firmware_bridge.programs import Ended

    bundle = bundle_of("2")
    said = "signature verification failed: Verify error: certificate is not yet valid"
    monkeypatch.setattr(bundles, "call", lambda *arguments: Ended(1, "", said))
    assert "clock" in str(refused(store, bundle, keys.authority, SignatureError))


def signature_start(bundle: bytes) -> int:
    """Where the payload and its hash tree end: the last 8 bytes are the signature's length."""
    return len(bundle) - 8 - int.from_bytes(bundle[-8:], "big")


def test_a_changed_byte_anywhere_in_the_payload_is_refused(
    store: SlotStore, tmp_path: Path, bundle_of: BundleOf, keys: Keys
) -> None:
    whole = bundle_of("2").read_bytes()
    end = signature_start(whole)
    chance = random.Random(0)
    places = [0, 96, 4096, end - 1, *range(len(whole) - 8, len(whole))]
    places += [chance.randrange(end) for _ in range(40)]
    damaged = tmp_path / "damaged.raucb"
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << chance.randrange(8)
        damaged.write_bytes(data)
        refused(store, damaged, keys.authority, SignatureError)


def test_a_changed_byte_in_the_signature_is_refused_or_changes_nothing(
    tmp_path: Path, bundle_of: BundleOf, keys: Keys
) -> None:
    """A CMS envelope has some 20 bytes (version numbers, names of algorithms) that no signature covers."""
    whole = bundle_of("2").read_bytes()
    tar = extract(bundle_of("2"), keys.authority, tmp_path / "whole").tar.read_bytes()
    damaged = tmp_path / "damaged.raucb"
    harmless = 0
    for place in range(signature_start(whole), len(whole) - 8, 9):
        data = bytearray(whole)
        data[place] ^= 4
        damaged.write_bytes(data)
        out = tmp_path / str(place)
        try:
            assert extract(damaged, keys.authority, out).tar.read_bytes() == tar
            harmless += 1
        except SignatureError:
            assert not out.exists()
    assert harmless < 10


def test_a_truncated_or_extended_bundle_is_refused(
    store: SlotStore, tmp_path: Path, bundle_of: BundleOf, keys: Keys
) -> None:
    whole = bundle_of("2").read_bytes()
    damaged = tmp_path / "damaged.raucb"
    for data in (
        b"",
        whole[:1],
        whole[:8],
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:-8],
        whole + b"\0",
        b"\0" * 9000,
    ):
        damaged.write_bytes(data)
        refused(store, damaged, keys.authority, SignatureError)


def test_the_payload_of_one_bundle_with_the_signature_of_another(
    store: SlotStore, tmp_path: Path, bundle_of: BundleOf, keys: Keys
) -> None:
    one, two = bundle_of("1").read_bytes(), bundle_of("2", behaviour="wrong").read_bytes()
    cut_one, cut_two = (len(b) - 8 - int.from_bytes(b[-8:], "big") for b in (one, two))
    (tmp_path / "mixed.raucb").write_bytes(two[:cut_two] + one[cut_one:])
    refused(store, tmp_path / "mixed.raucb", keys.authority, SignatureError)


def test_another_kind_of_device(store: SlotStore, bundle_of: BundleOf, keys: Keys, tmp_path: Path) -> None:
    error = refused(store, bundle_of("2", compatible="other-camera"), keys.authority, FlashError)
    assert error.exit_code == 2 and (error.wanted, error.got) == ("camera", "other-camera")
    for_other = {"compatible": "other-camera"}
    refused(store, bundle_of("2", compatible="other-camera"), keys.authority, FlashError, **for_other)
    refused(store, bundle_of("2"), keys.authority, FlashError, **for_other)
    with pytest.raises(FlashError, match="another kind"):
        flash(bundle_of("1"), tmp_path / "new", keys.authority, compatible="other-camera", prove=quick_prove)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz", "manifest.json"])
def test_a_damaged_artifact_is_neither_bundled_nor_installed(
    store: SlotStore,
    tmp_path: Path,
    keys: Keys,
    file: str,
    fake_runtime: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_artifact(tmp_path / "artifact", "2")
    sound = Artifact.open(folder)
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(data)
    signing = {"key": str(keys.signer_key), "cert": str(keys.signer), "compatible": "camera"}
    with pytest.raises(ArtifactError):
        make_bundle(folder, tmp_path / "b.raucb", **signing)
    assert not (tmp_path / "b.raucb").exists()
    # Damaged between the check and the packing: signed all the same, so the device has to see it.
    monkeypatch.setattr(Artifact, "open", lambda path: sound)
    bundle = make_bundle(folder, tmp_path / "b.raucb", **signing).path
    monkeypatch.undo()
    refused(store, bundle, keys.authority, ArtifactError)


@pytest.mark.parametrize("gate", [None, {"passed": False, "reasons": ["flips 11 %"]}])
def test_a_rejected_artifact_needs_two_decisions(
    tmp_path: Path, keys: Keys, gate: Any, fake_runtime: None, bundle_of: BundleOf
) -> None:
    folder = write_artifact(tmp_path / "artifact", gate=gate)
    signing = {"key": str(keys.signer_key), "cert": str(keys.signer), "compatible": "camera"}
    with pytest.raises(ArtifactError, match="rejected"):
        make_bundle(folder, tmp_path / "b.raucb", **signing)
    assert not (tmp_path / "b.raucb").exists()
    bundle = make_bundle(folder, tmp_path / "b.raucb", allow_rejected=True, **signing).path
    with pytest.raises(ArtifactError, match="rejected"):
        flash(bundle, tmp_path / "store", keys.authority, prove=quick_prove)
    assert not (tmp_path / "store").exists()
    change = flash(bundle, tmp_path / "store", keys.authority, allow_rejected=True, prove=quick_prove)
    assert change.active.state == GOOD


def _link(tar: tarfile.TarFile) -> None:
    add(tar, "model.onnx", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")


def _link_then_through_it(tar: tarfile.TarFile) -> None:
    add(tar, "sub", b"", type=tarfile.SYMTYPE, linkname="..")
    add(tar, "sub/evil")


def _twice(tar: tarfile.TarFile) -> None:
    add(tar, "model.onnx", b"good")
    add(tar, "model.onnx", b"evil")


def _file_and_folder(tar: tarfile.TarFile) -> None:
    add(tar, "model")
    add(tar, "model/onnx")


def _many(tar: tarfile.TarFile) -> None:
    for number in range(payload.MAX_FILES + 1):
        add(tar, f"{number}", b"")


_OUTSIDE = Path(tempfile.gettempdir()) / f"edgeqc-evil-{os.getpid()}"
_TRICKS: dict[str, Callable[[tarfile.TarFile], None]] = {
    "parent": lambda tar: add(tar, "../evil"),
    "parent inside": lambda tar: add(tar, "a/../../evil"),
    "absolute": lambda tar: add(tar, str(_OUTSIDE)),
    "backslash": lambda tar: add(tar, "..\\evil"),
    "dot": lambda tar: add(tar, "./evil"),
    "doubled slash": lambda tar: add(tar, "a//evil"),
    "too deep": lambda tar: add(tar, "/".join("abcdefghij")),
    "symbolic link": _link,
    "through a link": _link_then_through_it,
    "hard link": lambda tar: add(tar, "model.onnx", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": lambda tar: add(tar, "model.onnx", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "fifo": lambda tar: add(tar, "model.onnx", b"", type=tarfile.FIFOTYPE),
    "folder": lambda tar: add(tar, "sub", b"", type=tarfile.DIRTYPE),
    "twice": _twice,
    "file and folder": _file_and_folder,
    "many": _many,
}


@pytest.mark.parametrize("trick", sorted(_TRICKS))
def test_path_tricks_inside_a_signed_payload(
    store: SlotStore, tmp_path: Path, keys: Keys, trick: str
) -> None:
    refused(store, bundle_with(tmp_path, keys, _TRICKS[trick]), keys.authority, FlashError)
    assert not list(tmp_path.rglob("*evil*")) and not _OUTSIDE.exists()


def test_a_huge_member_that_is_not_there(store: SlotStore, tmp_path: Path, keys: Keys) -> None:
    content = tmp_path / "content"
    content.mkdir()
    member = tarfile.TarInfo("model.onnx")
    member.size = 1 << 40
    (content / PAYLOAD).write_bytes(member.tobuf() + bytes(9000))
    (content / "manifest.raucm").write_text(
        _MANIFEST.format(compatible="camera", format="verity", filename=PAYLOAD)
    )
    refused(store, sign(content, tmp_path / "b.raucb", keys), keys.authority, FlashError)


@pytest.mark.parametrize("kind", ["link", "folder", "missing", "not a tar", "compressed tar"])
def test_a_payload_that_is_no_tar(
    store: SlotStore, tmp_path: Path, keys: Keys, kind: str, fake_runtime: None
) -> None:
    content = tmp_path / "content"
    content.mkdir()
    (content / "other.tar").write_bytes(b"\1" * 9000)
    target = content / PAYLOAD
    if kind == "link":
        target.symlink_to("/etc/passwd")
    elif kind == "folder":
        target.mkdir()
    elif kind == "not a tar":
        target.write_bytes(b"\1" * 9000)
    elif kind == "compressed tar":
        with tarfile.open(target, "w:gz") as tar:
            add(tar, "model.onnx")
    # RAUC itself wants each image to be there when it signs, so these are named beside it.
    manifest = _MANIFEST.format(compatible="camera", format="verity", filename=PAYLOAD)
    if kind in ("link", "folder", "missing"):
        manifest = _MANIFEST.format(compatible="camera", format="verity", filename="other.tar")
    (content / "manifest.raucm").write_text(manifest)
    refused(store, sign(content, tmp_path / "b.raucb", keys), keys.authority, FlashError)


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_payload_of_another_kind_than_a_file(tmp_path: Path, kind: str) -> None:
    target = tmp_path / PAYLOAD
    if kind == "link":
        target.symlink_to("/etc/passwd")
    else:
        target.mkdir()
    with pytest.raises(FlashError, match="no artifact"):
        payload.unpack(target, tmp_path / "out")


def test_a_format_without_a_hash_tree_is_refused(
    store: SlotStore, tmp_path: Path, keys: Keys, fake_runtime: None
) -> None:
    content = tmp_path / "content"
    content.mkdir()
    payload.pack(Artifact.open(write_artifact(tmp_path / "a", "2")), content / PAYLOAD)
    (content / "manifest.raucm").write_text(
        _MANIFEST.format(compatible="camera", format="plain", filename=PAYLOAD)
    )
    error = refused(store, sign(content, tmp_path / "b.raucb", keys), keys.authority, SignatureError)
    assert "plain" in str(error)


def test_a_file_that_the_artifacts_manifest_does_not_list(
    store: SlotStore, tmp_path: Path, keys: Keys, fake_runtime: None
) -> None:
    folder = write_artifact(tmp_path / "a", "2")

    def members(tar: tarfile.TarFile) -> None:
        for file in sorted(folder.iterdir()):
            add(tar, file.name, file.read_bytes())

    assert refused(store, bundle_with(tmp_path, keys, members), keys.authority, FlashError).got == "padding"


def test_keys_and_keyrings_that_cannot_be_read(
    store: SlotStore,
    tmp_path: Path,
    bundle_of: BundleOf,
    keys: Keys,
    strangers_keys: Keys,
    fake_runtime: None,
) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no key")
    torn = tmp_path / "torn.pem"
    torn.write_bytes(keys.authority.read_bytes()[:90])
    for keyring in (tmp_path / "nothing.pem", tmp_path, junk):
        refused(store, bundle_of("2"), keyring, InputError)
    refused(store, bundle_of("2"), torn, SignatureError)
    refused(store, tmp_path / "nothing.raucb", keys.authority, InputError)
    artifact, out = write_artifact(tmp_path / "a"), tmp_path / "b.raucb"
    for key in (tmp_path / "nothing.pem", tmp_path, junk):
        with pytest.raises(InputError):
            make_bundle(artifact, out, key=str(key), cert=str(keys.signer))
        with pytest.raises(InputError):
            make_bundle(artifact, out, key=str(keys.signer_key), cert=str(key))
    for key in (strangers_keys.signer_key, torn):
        with pytest.raises(SignatureError):
            make_bundle(artifact, out, key=str(key), cert=str(keys.signer))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "junk.pem", "store", "torn.pem"]


def test_a_key_with_a_passphrase_fails_instead_of_waiting_for_one(
    tmp_path: Path, keys: Keys, fake_runtime: None
) -> None:
    locked, artifact = tmp_path / "locked.pem", write_artifact(tmp_path / "a")
    command = ["openssl", "ec", "-aes128", "-passout", "pass:secret", "-in", str(keys.signer_key)]
    subprocess.run([*command, "-out", str(locked)], check=True, capture_output=True)
    process, terminal = pty.fork()  # a person's terminal, where OpenSSL would ask
    if process == 0:
        code = 99
        try:
            make_bundle(artifact, tmp_path / "b.raucb", key=str(locked), cert=str(keys.signer))
        except SignatureError as error:
            code = 7 if "passphrase" in str(error) else 8
        finally:
            os._exit(code)
    end = time.monotonic() + 20
    ended, status = 0, 0
    while not ended and time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        time.sleep(0.02)
    os.close(terminal)
    assert ended and os.waitstatus_to_exitcode(status) == 7


@pytest.mark.parametrize("name", ["", "a b", "a\nversion=9", "a]", "é", "-x", "x" * 65])
def test_names_that_could_change_the_bundles_manifest(
    tmp_path: Path, keys: Keys, name: str, fake_runtime: None
) -> None:
    artifact = write_artifact(tmp_path / "a", name="x]\n[update]\ncompatible=evil")
    for field in ("compatible", "version"):
        if not name:
            continue
        with pytest.raises(InputError, match=f"unusable {field}"):
            make_bundle(
                artifact,
                tmp_path / "b.raucb",
                key=str(keys.signer_key),
                cert=str(keys.signer),
                **{field: name},
            )


def test_an_artifacts_name_cannot_write_into_the_bundles_manifest(
    store: SlotStore, tmp_path: Path, keys: Keys, fake_runtime: None
) -> None:
    artifact = write_artifact(tmp_path / "a", "2", name="x\n[update]\ncompatible=evil")
    bundle = make_bundle(
        artifact, tmp_path / "b.raucb", key=str(keys.signer_key), cert=str(keys.signer), compatible="camera"
    )
    assert flash(bundle.path, store.path, keys.authority, prove=quick_prove).active.version == "2"


def test_a_backend_that_is_not_there_costs_no_slot(store: SlotStore, bundle_of: BundleOf, keys: Keys) -> None:
    error = refused(store, bundle_of("2", backend="bridge-absent"), keys.authority, BackendUnavailableError)
    assert error.exit_code == 4


def test_a_full_disk_is_seen_before_anything_is_copied(
    store: SlotStore, bundle_of: BundleOf, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "free space" in str(refused(store, bundle_of("2"), keys.authority, FlashError))


def test_a_disk_that_fills_up_on_the_way(
    store: SlotStore, bundle_of: BundleOf, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", str(store.staging))

    monkeypatch.setattr(payload, "_unpack_one", full)
    assert "No space left" in str(refused(store, bundle_of("2"), keys.authority, FlashError))


def test_a_store_in_use_is_left_alone(store: SlotStore, bundle_of: BundleOf, keys: Keys) -> None:
    with SlotStore.open(store.path).locked(exclusive=False):
        assert "busy" in str(refused(store, bundle_of("2"), keys.authority, SlotError))


def test_without_rauc_the_one_command_is_named(
    tmp_path: Path, keys: Keys, bundle_of: BundleOf, fake_runtime: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bundle, artifact = bundle_of("1"), write_artifact(tmp_path / "a")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    signing = ["--key", str(keys.signer_key), "--cert", str(keys.signer), "--out", str(tmp_path / "b.raucb")]
    assert main(["bundle", str(artifact), *signing]) == 4
    assert main(["flash", str(bundle), f"local:{tmp_path / 'store'}", "--keyring", str(keys.authority)]) == 4
    assert capsys.readouterr().err.count("sudo apt-get install rauc squashfs-tools") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_existing_bundle_is_not_overwritten(tmp_path: Path, keys: Keys, fake_runtime: None) -> None:
    (tmp_path / "b.raucb").write_text("precious")
    artifact = write_artifact(tmp_path / "a")
    with pytest.raises(InputError, match="exists"):
        make_bundle(artifact, tmp_path / "b.raucb", key=str(keys.signer_key), cert=str(keys.signer))
    assert (tmp_path / "b.raucb").read_text() == "precious"


def test_an_unusual_path_is_no_trouble(tmp_path: Path, keys: Keys, fake_runtime: None) -> None:
    place = tmp_path / "a b;c'd\"e\\f é"
    place.mkdir()
    copied = make_keys(place / "keys #1")
    artifact = write_artifact(place / "artifact")
    manifest = json.loads((artifact / "manifest.json").read_text())
    write_manifest(artifact, manifest)
    bundle = make_bundle(
        artifact,
        place / "b.raucb",
        key=str(copied.signer_key),
        cert=str(copied.signer),
        keyring=copied.authority,
    )
    assert flash(bundle.path, place / "store", copied.authority, prove=quick_prove).active.state == GOOD
