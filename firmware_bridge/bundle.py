"""Signed RAUC bundles of an artifact (`docs/bundles.md`).

A bundle is RAUC's `verity` format: a squashfs with `manifest.raucm` and `artifact.tar`, a hash tree over it,
and a CMS signature over the manifest and the tree's root. Integrity is judged by `rauc extract`, which checks
the signature and every block; `rauc info` returns 0 on a verity bundle with a damaged payload.
"""

from __future__ import annotations

import configparser
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edge.artifact import Artifact
from edge.errors import ArtifactError, InputError
from edge.folders import refuse_existing, sha256
from edge.progress import step
from firmware_bridge import payload
from firmware_bridge.errors import FlashError, SignatureError
from firmware_bridge.programs import BUNDLE_PROGRAMS, Ended, call, require

PAYLOAD = "artifact.tar"
# Uncompressed: int8 weights hardly shrink, and a verity bundle must not fall below one 4 KiB block.
_SQUASHFS = "-noD -noF -no-sparse -all-root -no-xattrs -quiet -no-progress"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}")
_MANIFEST = """\
[update]
compatible={compatible}
version={version}
description={description}

[bundle]
format=verity

[image.model]
filename={payload}
"""
# `check-purpose`: only a certificate for code signing counts. `plain` bundles are refused: without a hash
# tree their payload could change between check and use.
_CONFIG = """\
[system]
compatible=edgeqc
bootloader=noop
bundle-formats=verity

[keyring]
path=keyring.pem
check-purpose=codesign
"""


@dataclass(frozen=True)
class Bundle:
    """A signed bundle file and what it says about itself."""

    path: Path
    compatible: str
    version: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Content:
    """What a verified bundle carried: `tar` lies in the folder that it was extracted to."""

    compatible: str
    version: str
    tar: Path


def default_compatible(artifact: Artifact) -> str:
    """The device kind that an artifact is for, from its profile or target: e.g. `edgeqc-coral-usb`."""
    return f"edgeqc-{artifact.manifest['profile'].get('name') or artifact.target}"


def rejection(artifact: Artifact) -> str | None:
    """Why the artifact has not passed its gate, or None when it has."""
    gate = artifact.manifest["gate"]
    if gate is None:
        return "it never went through the gate"
    if gate.get("passed") is not True:
        return "; ".join(str(reason) for reason in gate.get("reasons") or ()) or "the gate rejected it"
    return None


def refuse_rejected(artifact: Artifact, *, allow_rejected: bool) -> None:
    """Raise ArtifactError for an artifact that has not passed its gate, unless that is wanted."""
    reason = rejection(artifact)
    if reason is not None and not allow_rejected:
        raise ArtifactError(
            f"artifact `{artifact.name}` is rejected: it would change verdicts beyond its budget",
            wanted="an artifact that passed its gate",
            got=reason,
            next_step="export at another precision; to ship it all the same, add --allow-rejected",
        )


def make_bundle(
    artifact_path: Path,
    out: Path,
    *,
    key: str,
    cert: str,
    keyring: Path | None = None,
    compatible: str | None = None,
    version: str | None = None,
    allow_rejected: bool = False,
) -> Bundle:
    """Sign the artifact in `artifact_path` into the new file `out`, which appears whole or not at all.

    Args:
        key, cert: PEM files, or `pkcs11:` addresses of a token.
        keyring: where given, checks that a camera with this keyring will accept the signature.
        compatible: device kind; None takes `default_compatible`.
        version: None takes the artifact's.

    Raises:
        ArtifactError and its kinds: damaged, or rejected by its gate.
        InputError: a missing key, an existing `out`, an unusable name.
        SignatureError: key and certificate do not go together, or the keyring does not accept them.
        ProgramMissingError: no RAUC or squashfs-tools.
    """
    artifact = Artifact.open(artifact_path)
    refuse_rejected(artifact, allow_rejected=allow_rejected)
    compatible = _word("compatible", compatible or default_compatible(artifact))
    version = _word("version", version or artifact.version)
    for what, name in (("signing key", key), ("signing certificate", cert), ("keyring", str(keyring or ""))):
        if name and not name.startswith("pkcs11:"):
            check_pem(what, Path(name))
    refuse_existing(out)
    require(*BUNDLE_PROGRAMS)
    # Made in a sibling folder, so that the last step is a rename on the same file system.
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as exc:
        raise InputError(f"cannot create {out}", got=exc.strerror, next_step="choose another --out") from exc
    try:
        content = workplace / "content"
        content.mkdir()
        payload.pack(artifact, content / PAYLOAD)
        (content / "manifest.raucm").write_text(
            _MANIFEST.format(
                compatible=compatible,
                version=version,
                description=_plain(f"{artifact.name} for {artifact.target}, {artifact.precision}"),
                payload=PAYLOAD,
            ),
            encoding="utf-8",
        )
        draft = workplace / "bundle.raucb"
        with step(f"signing {out.name}"):
            _sign(workplace, content, draft, key, cert, keyring)
        draft.chmod(0o644)
        payload.sync(draft)
        facts = Bundle(out, compatible, version, draft.stat().st_size, sha256(draft))
        draft.rename(out)
        payload.sync(out.parent)
        return facts
    finally:
        shutil.rmtree(workplace)


def _sign(workplace: Path, content: Path, draft: Path, key: str, cert: str, keyring: Path | None) -> None:
    arguments = ["bundle", f"--cert={cert}", f"--key={key}", f"--mksquashfs-args={_SQUASHFS}"]
    if keyring is not None:
        arguments = [f"--conf={_config(workplace, keyring)}", *arguments, f"--signing-keyring={keyring}"]
    ended = call("rauc", *arguments, str(content), str(draft))
    if ended.code == 0:
        return
    reasons = {
        "key values mismatch": "certificate and key do not belong together; give one pair",
        "failed to parse": "give PEM files without a passphrase, or a pkcs11: address",
        "verify error": "sign with a code-signing certificate that this keyring's authority issued",
    }
    hint = next((advice for mark, advice in reasons.items() if mark in ended.errors.lower()), None)
    raise SignatureError("RAUC could not sign the bundle", got=ended.said, next_step=hint)


def extract(bundle: Path, keyring: Path, folder: Path) -> Content:
    """Verify signature and every byte of `bundle`, then extract it into the new folder `folder`.

    `bundle` must lie in a folder that only the caller can write to (RAUC is told to trust that).

    Raises:
        InputError: no such bundle or keyring.
        SignatureError: anything that RAUC refuses: another signer, a changed byte, a truncated file.
        FlashError: signed, but not a bundle that edgeqc makes.
        ProgramMissingError: no RAUC or squashfs-tools.
    """
    if not bundle.is_file():
        raise InputError(f"there is no bundle at {bundle}", wanted="the file that `edgeqc bundle` wrote")
    check_pem("keyring", keyring)
    require(*BUNDLE_PROGRAMS)
    with tempfile.TemporaryDirectory(prefix="edgeqc-keyring-") as place:
        config = _config(Path(place), keyring)
        ended = call("rauc", f"--conf={config}", "extract", "--trust-environment", str(bundle), str(folder))
    if ended.code != 0:
        raise _refusal(bundle, ended)
    return _content(folder)


def _refusal(bundle: Path, ended: Ended) -> SignatureError:
    said = ended.said.lower()
    if "not yet valid" in said or "expired" in said:
        hint = "check this device's clock (`date`); if it is right, sign again with a valid certificate"
    elif "local issuer" in said or "self" in said:
        hint = "another authority signed it: use the keyring that belongs to the signer, or do not install it"
    elif "purpose" in said:
        hint = "sign with a code-signing certificate, as `edgeqc keys` makes"
    else:
        hint = "the file was damaged or changed on its way: copy it again"
    return SignatureError(
        f"{bundle.name} is refused",
        wanted="a bundle that this keyring's signer signed",
        got=ended.said,
        next_step=hint,
    )


def _content(folder: Path) -> Content:
    file = folder / "manifest.raucm"
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    try:
        if file.is_symlink():
            raise ValueError("a link")
        parser.read_string(file.read_text(encoding="utf-8"))
        update = parser["update"]
        image = parser["image.model"]["filename"]
        if image != PAYLOAD:
            raise ValueError(f"image {image!r}")
        return Content(update["compatible"], update.get("version", ""), folder / PAYLOAD)
    except (OSError, ValueError, KeyError, configparser.Error) as exc:
        raise FlashError(
            "the bundle is signed, but it does not carry an edgeqc artifact",
            wanted=f"manifest.raucm with [image.model] {PAYLOAD}",
            got=f"{type(exc).__name__}: {exc}",
            next_step="install bundles made by `edgeqc bundle`",
        ) from exc


def _config(folder: Path, keyring: Path) -> Path:
    """A RAUC configuration beside a copy of the keyring, so that no character of its path can matter."""
    shutil.copyfile(keyring, folder / "keyring.pem")
    file = folder / "rauc.conf"
    file.write_text(_CONFIG, encoding="ascii")
    return file


def check_pem(what: str, file: Path) -> None:
    """Raise InputError when `file` cannot be read as PEM."""
    try:
        text = file.read_bytes()
    except OSError as exc:
        raise InputError(
            f"the {what} is not readable", wanted="a PEM file", got=f"{file}: {exc.strerror}"
        ) from exc
    if b"-----BEGIN " not in text:
        raise InputError(f"the {what} is not a PEM file", wanted="-----BEGIN ...", got=str(file))


def _word(what: str, text: str) -> str:
    if not _WORD.fullmatch(text):
        raise InputError(
            f"unusable {what} for a bundle", wanted="letters, digits, . _ + ~ - (at most 64)", got=repr(text)
        )
    return text


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 ,._+~-]", "_", text)
