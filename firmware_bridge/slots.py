"""The slot store: two slots, one link that says which is active. Every change is one atomic rename.

```
STORE/
  store.json          format, compatible; written once, by the first installation
  active -> a         the truth about which slot is active; absent before the first installation ends
  a/  b/              artifact folders, whole or absent
  a.json  b.json      what is known about the artifact there: state, reason, digest, when, which bundle
  lock                flock: exclusive for a change, shared while a slot is being tested
  .edgeqc-staging/    everything unfinished; the next change removes it
```

A record speaks only for the artifact whose digest it holds. So a slot's state needs no journal:

| folder | record | state |
|---|---|---|
| absent | any | `empty` |
| there | of another digest, or unreadable | `untested`: an interrupted installation, or a changed manifest |
| there | of this digest | the record's: `bad` (with its reason), `ready` (passed, never active), `good` |

A runtime opens `STORE/active`. Folders of a slot are never written to while the link points at it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.artifact import MANIFEST
from edge.folders import sha256, write_json
from firmware_bridge.errors import SlotError
from firmware_bridge.payload import sync

FORMAT = "edgeqc-slots/1"
NAMES = ("a", "b")
EMPTY, UNTESTED, BAD, READY, GOOD = "empty", "untested", "bad", "ready", "good"
_STORE = "store.json"
_ACTIVE = "active"
_LOCK = "lock"
_STAGING = ".edgeqc-staging"
_NEW_LINK = ".active.new"


@dataclass(frozen=True)
class Slot:
    """One slot.

    Attributes:
        name: `a` or `b`.
        state: empty, untested, bad, ready or good.
        reason: why it is bad or untested.
        artifact, version, target, precision: of the artifact in it.
        digest: of the artifact (SHA-256 of its manifest).
        bundle_sha256: of the bundle that it came from.
        installed_at: UTC, ISO 8601, by the device's clock.
        stand_in: its self-test ran on a stand-in, so it is not verified on the device.
    """

    name: str
    state: str = EMPTY
    reason: str = ""
    artifact: str = ""
    version: str = ""
    target: str = ""
    precision: str = ""
    digest: str = ""
    bundle_sha256: str = ""
    installed_at: str = ""
    stand_in: bool = False


class SlotStore:
    """A slot store on one file system; `SlotStore.at` instead of `open` for a first installation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | Path) -> SlotStore:
        """Open an existing store.

        Raises:
            SlotError: there is none, or its format is unknown.
        """
        store = cls(Path(path))
        if store.compatible is None:
            raise SlotError(
                f"there is no slot store at {path}",
                wanted=f"a folder with {_STORE}",
                next_step=f"install a bundle first: edgeqc flash BUNDLE local:{path} --keyring CA",
            )
        return store

    @classmethod
    def at(cls, path: str | Path) -> SlotStore:
        """Open a store, or an empty folder that is to become one (made when it is not there).

        Raises:
            SlotError: the folder holds something else, or cannot be made.
        """
        store = cls(Path(path))
        try:
            store.path.mkdir(parents=True, exist_ok=True)
            foreign = [
                e.name
                for e in store.path.iterdir()
                if e.name not in (_LOCK, _STAGING) and not _leftover(e.name)
            ]
        except OSError as exc:
            raise SlotError(f"cannot make a slot store at {path}", got=exc.strerror) from exc
        if store.compatible is None and foreign:
            raise SlotError(
                f"{path} is neither a slot store nor empty",
                wanted="a slot store or a new folder",
                got=", ".join(sorted(foreign)[:5]),
            )
        return store

    @property
    def staging(self) -> Path:
        """Where unfinished things lie; on the store's file system."""
        return self.path / _STAGING

    @property
    def active_link(self) -> Path:
        """What a runtime opens."""
        return self.path / _ACTIVE

    @property
    def compatible(self) -> str | None:
        """The device kind of this store, None before its first installation.

        Raises:
            SlotError: `store.json` is not readable or of an unknown format.
        """
        file = self.path / _STORE
        try:
            facts = json.loads(file.read_bytes())
            if facts["format"] != FORMAT:
                raise SlotError(
                    f"{file} has a format that this version does not know",
                    wanted=FORMAT,
                    got=facts["format"],
                    next_step="update edgeqc on this device",
                )
            return str(facts["compatible"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise SlotError(
                f"{file} is damaged",
                got=f"{type(exc).__name__}: {exc}",
                next_step="move the store away and flash again",
            ) from exc

    def create(self, compatible: str) -> None:
        """Pin the device kind at the first installation."""
        write_json(self.path / _STORE, {"format": FORMAT, "compatible": compatible})

    def folder(self, name: str) -> Path:
        """The artifact folder of a slot, there or not."""
        return self.path / name

    def active(self) -> str | None:
        """Name of the active slot, None before the first installation has ended.

        Raises:
            SlotError: the link was replaced by something else.
        """
        try:
            name = str(self.active_link.readlink())
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise SlotError(
                f"{self.active_link} is not a link", wanted="a link to a or b", got=exc.strerror
            ) from exc
        if name not in NAMES:
            raise SlotError(f"{self.active_link} points outside the slots", wanted="a or b", got=name)
        return name

    def other(self) -> str:
        """The slot that the next installation goes to: never the active one."""
        return "b" if self.active() == "a" else "a"

    def slot(self, name: str) -> Slot:
        """Read one slot; its state follows the table at the top of this module."""
        manifest = self.folder(name) / MANIFEST
        try:
            digest = sha256(manifest)
        except FileNotFoundError:
            if not self.folder(name).exists():
                return Slot(name)
            return Slot(name, BAD, reason=f"{MANIFEST} is missing")
        except OSError as exc:
            return Slot(name, BAD, reason=f"{MANIFEST} is not readable: {exc.strerror}")
        record = self._record(name)
        if record is None or record.digest != digest:
            reason = "an installation was interrupted here, or its manifest was changed"
            return Slot(name, UNTESTED, reason=reason, digest=digest)
        return record

    def slots(self) -> list[Slot]:
        """Both slots."""
        return [self.slot(name) for name in NAMES]

    def _record(self, name: str) -> Slot | None:
        try:
            facts = json.loads((self.path / f"{name}.json").read_bytes())
            record = Slot(**{**facts, "name": name})
        except (OSError, ValueError, TypeError):
            return None  # `slot` reports it as untested: without a record nobody vouches for the folder
        return record if record.state in (UNTESTED, BAD, READY, GOOD) else None

    def record(self, slot: Slot) -> None:
        """Write what is known about the artifact in a slot."""
        facts: dict[str, Any] = asdict(slot)
        facts.pop("name")
        write_json(self.path / f"{slot.name}.json", facts)

    def place(self, folder: Path, name: str) -> None:
        """Put the flushed folder `folder` (in `staging`) into the inactive slot `name`.

        Two renames; what was there goes to `staging`. A cut between them leaves the slot empty.
        """
        assert name != self.active(), "the active slot is never written to"
        if os.path.lexists(self.folder(name)):
            self.folder(name).rename(self.staging / f"replaced-{name}")
        folder.rename(self.folder(name))
        sync(self.path)

    def withdraw(self, name: str) -> None:
        """Undo `place`, before anything was recorded: what was in the slot is there again."""
        self.folder(name).rename(self.staging / f"withdrawn-{name}")
        replaced = self.staging / f"replaced-{name}"
        if replaced.exists():
            replaced.rename(self.folder(name))
        sync(self.path)

    def activate(self, name: str) -> None:
        """Make `name` the active slot: one rename of a link, then a flush."""
        link = self.path / _NEW_LINK
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        link.replace(self.active_link)
        sync(self.path)

    def recover(self) -> None:
        """Finish or remove what an interrupted change left; called under the exclusive lock. Idempotent."""
        for name in NAMES:
            replaced = self.staging / f"replaced-{name}"
            if replaced.exists() and not self.folder(name).exists():  # cut between the renames of `place`
                replaced.rename(self.folder(name))
        if self.staging.exists():
            shutil.rmtree(self.staging)
        for entry in self.path.iterdir():
            if _leftover(entry.name):
                entry.unlink()
        active = self.active()
        for slot in self.slots():
            if slot.name == active and slot.state == READY:  # cut after activation, before its last record
                self.record(Slot(**{**asdict(slot), "state": GOOD}))

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the store. The lock dies with the process, so a kill leaves none behind.

        Raises:
            SlotError: somebody else holds it, or it cannot be opened.
        """
        handle = self._lock_file(exclusive)
        try:
            while True:
                try:
                    fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                except BlockingIOError as exc:
                    raise SlotError(
                        f"the slot store at {self.path} is busy",
                        got="another flash, rollback or self-test is running",
                        next_step="wait until it has ended, then try again",
                    ) from exc
                if _same_file(handle, self.path / _LOCK):
                    break
                os.close(handle)  # `remove_if_unused` took it away before we held it
                handle = self._lock_file(exclusive)
            yield
        finally:
            os.close(handle)

    def _lock_file(self, exclusive: bool) -> int:
        flags = os.O_RDWR | os.O_CREAT if exclusive else os.O_RDONLY
        try:
            return os.open(self.path / _LOCK, flags | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise SlotError(f"cannot lock the slot store at {self.path}", got=exc.strerror) from exc

    def remove_if_unused(self) -> None:
        """Remove the folder of a first installation that was refused; called under the exclusive lock."""
        if self.compatible is None and {entry.name for entry in self.path.iterdir()} <= {_LOCK}:
            (self.path / _LOCK).unlink(missing_ok=True)
            self.path.rmdir()


def _same_file(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _leftover(name: str) -> bool:
    """True for the temporary names of `write_json` and `activate`."""
    temporary = tuple(f".{file}." for file in (_STORE, *(f"{slot}.json" for slot in NAMES)))
    return name == _NEW_LINK or name.startswith(temporary)
