"""Installing a bundle into the inactive slot, and going back. Safe against a power cut at every step.

| step | on disk after a kill here | active | what the next change does |
|---|---|---|---|
| `receive` | `.edgeqc-staging/bundle.raucb`, perhaps partly | old | removes staging |
| `verify` | staging: content as RAUC extracted it | old | removes staging |
| `unpack` | staging: `artifact/`, perhaps partly; whole and flushed at the end | old | removes staging |
| `place`, after its first rename | inactive slot empty, its old folder in staging | old | puts it back |
| `place`, after its second rename | new folder in the slot, no record of it: `untested` | old | replaces it |
| `test` | the same; the record `ready` or `bad` at the end | old | replaces it |
| `withdraw` (the device was missing) | slot empty, its old folder in staging | old | puts it back |
| `activate` | link moved, record `ready` | **new** | makes the record `good` |
| `finish` | record `good`, staging perhaps still there | new | removes staging |

The active slot is never touched, and the link moves only to a slot that is verified, flushed and tested; so
at every instant the active slot is whole and good. Up to `unpack` the other slot stays as it was, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, Optional

from edge.artifact import Artifact
from edge.backend import find_backend
from edge.errors import BackendUnavailableError, InputError
from edge.folders import sha256
from edge.progress import step
from firmware_bridge import bundle as bundles
from firmware_bridge import payload
from firmware_bridge.errors import FlashError, SelfTestError, SlotError
from firmware_bridge.selftest import FAIL, SelfTest, selftest
from firmware_bridge.slots import BAD, GOOD, READY, Slot, SlotStore

# The bundle, the tar that RAUC extracts, the unpacked files: each about as large as the bundle.
SPACE_FACTOR = 3
SPACE_RESERVE_BYTES = 1 << 20

# Tests a slot's folder; `device`, `stand_in` as for `selftest`.
Prove = Callable[[Path, Optional[str], bool], SelfTest]


@dataclass(frozen=True)
class Change:
    """What a flash or a rollback did.

    Attributes:
        active: the slot that is active now.
        previous: the slot that was active before, None at the first installation.
    """

    active: Slot
    previous: Slot | None
    test: SelfTest


class NotKeptError(SelfTestError):
    """The self-test of a slot failed, and what it said. That slot is marked bad; the old one stays active."""

    def __init__(self, slot: Slot, active: str | None, test: SelfTest) -> None:
        self.slot = slot
        self.test = test
        super().__init__(
            f"slot {slot.name} did not pass its self-test and is marked bad",
            wanted="every check passed",
            got=test.reason,
            next_step=f"slot {active} is still active"
            if active
            else "no slot is active; flash another bundle",
        )


def prove(folder: Path, device: str | None, stand_in: bool) -> SelfTest:
    """The self-test as flash and rollback run it."""
    with step(f"self-test of slot {folder.name}"):
        return selftest(folder, device=device, stand_in=stand_in)


def flash(
    bundle: Path,
    store_path: Path,
    keyring: Path,
    *,
    compatible: str | None = None,
    device: str | None = None,
    stand_in: bool = False,
    allow_rejected: bool = False,
    prove: Prove = prove,
) -> Change:
    """Verify `bundle`, install it into the inactive slot of the store, test it there, make it active.

    Args:
        keyring: certificate of the authority that signers must come from.
        compatible: device kind that the bundle must be for; None takes the store's, which the first
            installation pins.
        stand_in: the self-test runs on the artifact's stand-in; marked in the slot's record.

    Raises:
        InputError, SignatureError, FlashError, ArtifactError and its kinds: refused; no slot is touched.
        NotKeptError: the self-test failed; the old slot stays active.
        BackendUnavailableError: SDK or device missing; both slots are as before.
        SlotError: the store is busy or damaged.
    """
    if not bundle.is_file():
        raise InputError(f"there is no bundle at {bundle}", wanted="the file that `edgeqc bundle` wrote")
    bundles.check_pem("keyring", keyring)
    store = SlotStore.at(store_path)
    with _changing(store):
        received = _receive(bundle, store)
        with step("verifying signature and payload"):
            content = bundles.extract(received, keyring, store.staging / "content")
        _check_compatible(store, compatible, content)
        artifact = _unpack(content.tar, store.staging / "artifact", allow_rejected)
        _require_backend(artifact, stand_in)
        slot = Slot(
            name=store.other(),
            artifact=artifact.name,
            version=content.version or artifact.version,
            target=artifact.target,
            precision=artifact.precision,
            digest=artifact.digest,
            bundle_sha256=sha256(received),
            installed_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        if store.compatible is None:
            store.create(content.compatible)
        store.place(artifact.path, slot.name)
        try:
            return _keep_if_proven(store, slot, device, stand_in, prove)
        except (
            BackendUnavailableError
        ):  # nothing is wrong with either artifact: an accelerator is not plugged in
            store.withdraw(slot.name)
            raise


def rollback(
    store_path: Path, *, device: str | None = None, stand_in: bool = False, prove: Prove = prove
) -> Change:
    """Make the other slot active again, after its files are verified and its self-test has passed.

    Raises:
        SlotError: there is nothing to go back to.
        NotKeptError: the other slot is damaged or fails its self-test; it is marked bad.
        BackendUnavailableError: SDK or device missing.
    """
    store = SlotStore.open(store_path)
    with _changing(store):
        if store.active() is None:
            raise SlotError(
                "no slot is active, so there is nothing to go back from", next_step="flash a bundle"
            )
        slot = store.slot(store.other())
        if slot.state != GOOD:
            raise SlotError(
                "there is nothing to roll back to",
                wanted=f"a good artifact in slot {slot.name}",
                got=f"{slot.state}{': ' + slot.reason if slot.reason else ''}",
                next_step="flash the bundle of the version that you want",
            )
        return _keep_if_proven(store, slot, device, stand_in, prove)


@contextmanager
def _changing(store: SlotStore) -> Iterator[None]:
    """Hold the store for a change: recover before, clean up after, speak of full and broken disks."""
    with store.locked(exclusive=True):
        try:
            store.recover()
            store.staging.mkdir(mode=0o700)
            yield
        except OSError as exc:
            raise FlashError(
                "the device's storage refused",
                got=f"{exc.strerror or exc}: {exc.filename or store.path}",
                next_step="check free space and permissions; the active slot is untouched",
            ) from exc
        finally:
            shutil.rmtree(store.staging, ignore_errors=True)  # what stays, the next change removes
            store.remove_if_unused()


def _receive(bundle: Path, store: SlotStore) -> Path:
    """Copy the bundle into the private staging folder: what is verified is then what is installed."""
    needed_bytes = SPACE_FACTOR * bundle.stat().st_size + SPACE_RESERVE_BYTES
    free_bytes = shutil.disk_usage(store.path).free
    if free_bytes < needed_bytes:
        raise FlashError(
            "not enough free space for the installation",
            wanted=f"{needed_bytes / 2**20:.1f} MiB in {store.path}",
            got=f"{free_bytes / 2**20:.1f} MiB",
        )
    received = store.staging / "bundle.raucb"
    with step("receiving the bundle"):
        shutil.copyfile(bundle, received)
    return received


def _check_compatible(store: SlotStore, compatible: str | None, content: bundles.Content) -> None:
    pinned = store.compatible
    if pinned is not None and compatible not in (None, pinned):
        raise FlashError(
            f"{store.path} belongs to another kind of device", wanted=pinned, got=f"--compatible {compatible}"
        )
    wanted = pinned or compatible
    if wanted is not None and content.compatible != wanted:
        raise FlashError(
            "the bundle is for another kind of device",
            wanted=wanted,
            got=content.compatible,
            next_step="install the bundle that was made for this device",
        )


def _unpack(tar: Path, folder: Path, allow_rejected: bool) -> Artifact:
    with step("unpacking the artifact"):
        payload.unpack(tar, folder)
        artifact = Artifact.open(folder)
        payload.check_listed(artifact)
    bundles.refuse_rejected(artifact, allow_rejected=allow_rejected)
    return artifact


def _require_backend(artifact: Artifact, stand_in: bool) -> None:
    """Refuse before the slot is overwritten when this machine cannot run the artifact at all."""
    name = artifact.backend
    if stand_in and artifact.stand_in is not None:
        name = str(artifact.stand_in["backend"])
    backend = find_backend(name)
    probe = backend.probe()
    if not probe.usable:
        raise backend.unavailable(probe.reason, fix=probe.fix or None)


def _keep_if_proven(store: SlotStore, slot: Slot, device: str | None, stand_in: bool, prove: Prove) -> Change:
    """Test the artifact in a slot; make it active if it passes, else record why not."""
    before = store.active()
    previous = store.slot(before) if before else None
    test = prove(store.folder(slot.name), device, stand_in)  # verifies the files first
    slot = replace(slot, stand_in=test.stand_in, reason="" if test.passed else test.reason)
    if not test.passed:
        if all(check.state != FAIL for check in test.checks):
            raise BackendUnavailableError(
                f"slot {slot.name} cannot be tested here, so it was not made active", got=test.reason,
                next_step=next((check.advice for check in test.checks if check.advice), None),
            )  # fmt: skip
        bad = replace(slot, state=BAD)
        store.record(bad)
        raise NotKeptError(bad, before, test)
    if slot.state != GOOD:
        store.record(replace(slot, state=READY))
    store.activate(slot.name)
    kept = replace(slot, state=GOOD)
    store.record(kept)
    return Change(kept, previous, test)
