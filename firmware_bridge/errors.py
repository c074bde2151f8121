"""Errors of shipping.

```
EdgeError (edge.errors)
  BridgeError
    ProgramMissingError   a system program (rauc, mksquashfs, openssl) is not installed; exit code 4
    SignatureError        a bundle is not what a trusted signer signed, or signing is not possible
    SlotError             a slot store cannot do what was asked
    FlashError            a bundle's content cannot be installed here
    SelfTestError         the self-test ran and failed; exit code 3
```
"""

from __future__ import annotations

from typing import ClassVar

from edge.errors import EdgeError


class BridgeError(EdgeError):
    """Shipping an artifact to a device did not work."""


class ProgramMissingError(BridgeError):
    """A system program that shipping calls is not installed."""

    exit_code: ClassVar[int] = 4


class SignatureError(BridgeError):
    """A bundle was refused by its signature, or a signature cannot be made with these keys."""


class SlotError(BridgeError):
    """A slot store is missing, busy, damaged, or has nothing to go back to."""


class FlashError(BridgeError):
    """A bundle is signed, but its content cannot be installed on this device."""


class SelfTestError(BridgeError):
    """The self-test ran and failed. The slot that was active before is still active."""

    exit_code: ClassVar[int] = 3
