"""Signing keys: a certificate authority that cameras trust, and a signer that it vouches for.

The camera carries the authority's certificate only. The signer's certificate is limited to code signing, and
every verification asks for that purpose, so no other certificate of the same authority can sign a bundle.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from edge.errors import InputError
from edge.folders import new_folder, refuse_existing
from edge.progress import step
from firmware_bridge.errors import BridgeError
from firmware_bridge.programs import call, require

ALGORITHMS = {
    "ec": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "rsa": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"),
}
DEFAULT_DAYS = 3650
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,47}")
_CONFIG = """\
[req]
distinguished_name = subject
prompt = no
[subject]
CN = {name} authority
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[signer]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, codeSigning
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True)
class Keys:
    """A folder of signing keys."""

    folder: Path

    @property
    def authority(self) -> Path:
        """Certificate that goes on the cameras: the keyring."""
        return self.folder / "ca.cert.pem"

    @property
    def authority_key(self) -> Path:
        """Private key that makes further signers; keep it offline."""
        return self.folder / "ca.key.pem"

    @property
    def signer(self) -> Path:
        """Certificate that travels inside every bundle."""
        return self.folder / "signer.cert.pem"

    @property
    def signer_key(self) -> Path:
        """Private key that signs bundles."""
        return self.folder / "signer.key.pem"


def make_keys(folder: Path, *, algorithm: str = "ec", name: str = "edgeqc", days: int = DEFAULT_DAYS) -> Keys:
    """Make an authority and a signer in the new folder `folder`; private keys are readable by the owner only.

    Args:
        algorithm: `ec` (P-256) or `rsa` (3072 bits).
        name: begins the common names of both certificates.
        days: how long both certificates are valid, from now by this machine's clock.

    Raises:
        InputError: `folder` exists, or an unusable argument.
        ProgramMissingError: no openssl.
        BridgeError: openssl failed.
    """
    folder = Path(folder)
    if algorithm not in ALGORITHMS:
        raise InputError("unknown key algorithm", wanted=" or ".join(ALGORITHMS), got=algorithm)
    if not _NAME.fullmatch(name):
        raise InputError(
            "unusable name for a certificate",
            wanted="letters, digits, space, . _ - (at most 48)",
            got=repr(name),
        )
    if not 1 <= days <= 36500:
        raise InputError("unusable validity", wanted="1 to 36500 days", got=days)
    refuse_existing(folder)
    require("openssl")
    with step("making signing keys"), new_folder(folder) as draft:
        _fill(Keys(draft), algorithm, name, days)
    return Keys(folder)


def _fill(keys: Keys, algorithm: str, name: str, days: int) -> None:
    config = keys.folder / "openssl.cnf"
    request = keys.folder / "request.pem"
    config.write_text(_CONFIG.format(name=name), encoding="ascii")
    for key in (keys.authority_key, keys.signer_key):
        key.touch(mode=0o600)
        _openssl("genpkey", *ALGORITHMS[algorithm], "-out", str(key))
        key.chmod(0o600)
    with_config = ("-config", str(config))
    _openssl(
        "req", "-x509", "-new", "-sha256", *with_config, "-extensions", "authority", "-days", str(days),
        "-set_serial", _serial(), "-key", str(keys.authority_key), "-out", str(keys.authority),
    )  # fmt: skip
    _openssl(
        "req", "-new", "-sha256", *with_config, "-subj", f"/CN={name} signer",
        "-key", str(keys.signer_key), "-out", str(request),
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-sha256", "-in", str(request), "-extfile", str(config), "-extensions", "signer",
        "-CA", str(keys.authority), "-CAkey", str(keys.authority_key), "-set_serial", _serial(),
        "-days", str(days), "-out", str(keys.signer),
    )  # fmt: skip
    request.unlink()
    config.unlink()


def _serial() -> str:
    return f"0x{secrets.randbits(126) | 1:x}"


def _openssl(*arguments: str) -> None:
    ended = call("openssl", *arguments)
    if ended.code != 0:
        raise BridgeError(
            f"`openssl {arguments[0]}` failed",
            got=ended.said,
            next_step="check `openssl version`: 1.1.1 or later is needed",
        )
