"""The system programs that shipping calls: RAUC, squashfs-tools, OpenSSL."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from firmware_bridge.errors import BridgeError, ProgramMissingError

# One command repairs everything that one verb needs.
BUNDLE_PROGRAMS = ("rauc", "mksquashfs", "unsquashfs")
INSTALL = {
    **dict.fromkeys(BUNDLE_PROGRAMS, "sudo apt-get install rauc squashfs-tools"),
    "openssl": "sudo apt-get install openssl",
}
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Ended:
    """How a program ended; `said` is its last line on standard error."""

    code: int
    output: str
    errors: str

    @property
    def said(self) -> str:
        """The line that says what went wrong, or a note that there is none."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.code} and no message"


def require(*names: str) -> None:
    """Raise ProgramMissingError, with the command that installs it, for the first program that is missing."""
    for name in names:
        if shutil.which(name) is None:
            raise ProgramMissingError(f"the program `{name}` is not installed", next_step=INSTALL[name])


def call(name: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> Ended:
    """Run a program to its end without a terminal, so that it fails where it would ask for a passphrase.

    Raises:
        ProgramMissingError: it is not installed.
        BridgeError: it did not end within `timeout_s`.
    """
    require(name)
    try:
        done = subprocess.run(
            [name, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise BridgeError(f"`{name}` did not end", wanted=f"at most {timeout_s:.0f} s") from exc
    return Ended(done.returncode, done.stdout, done.stderr)
