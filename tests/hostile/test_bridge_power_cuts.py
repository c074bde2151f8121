"""Power cuts, at every single change to the disk. The active slot must be whole and good at every instant."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge_artifacts import CUT, BundleOf, cut_power, quick_prove
from edge.artifact import Artifact
from edge.errors import BackendUnavailableError
from firmware_bridge.errors import SlotError
from firmware_bridge.flash import NotKeptError, flash, rollback
from firmware_bridge.keys import Keys
from firmware_bridge.slots import BAD, EMPTY, GOOD, NAMES, READY, UNTESTED, SlotStore

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
MOST_CHANGES = 200


def check_invariant(path: Path) -> str | None:
    """The active slot is whole and good; return its version, None before the first installation."""
    store = SlotStore(path)
    if not path.exists() or store.active() is None:
        return None
    name = store.active()
    assert name in NAMES
    assert store.slot(name).state in (GOOD, READY), store.slot(name)
    artifact = Artifact.open(store.active_link)
    assert artifact.manifest["behaviour"] == "ok"
    assert artifact.digest == store.slot(name).digest
    for slot in store.slots():  # and nothing that fails its self-test is ever called good
        if slot.state in (GOOD, READY):
            assert Artifact.open(store.folder(slot.name)).manifest["behaviour"] == "ok"
    return artifact.version


def leftovers(path: Path) -> set[str]:
    """Entries that do not belong to a store at rest."""
    known = {"store.json", "active", "lock", *NAMES, *(f"{name}.json" for name in NAMES)}
    return {entry.name for entry in path.iterdir()} - known


@pytest.fixture
def prepared(tmp_path: Path, bundle_of: BundleOf, keys: Keys) -> Path:
    """A store that holds version 1 in slot a, and version 2, active, in slot b."""
    for version in ("1", "2"):
        flash(bundle_of(version), tmp_path / "prepared", keys.authority, prove=quick_prove)
    return tmp_path / "prepared"


def cut_everywhere(
    template: Path | None, work: Path, action: Callable[[Path], Any], check: Callable[[Path], None]
) -> int:
    """Run `action` on a fresh copy of `template`, dying at the first, second, ... change; check all."""
    for at in range(1, MOST_CHANGES):
        path = work / f"store-{at}"
        if template is not None:
            shutil.copytree(template, path, symlinks=True)
        code = cut_power(at, lambda path=path: action(path))
        if code != CUT:
            assert code == 0, f"ended with {code} at change {at}"
            return at - 1
        check(path)
        shutil.rmtree(path, ignore_errors=True)
    raise AssertionError(f"no end after {MOST_CHANGES} changes")


@pytest.mark.slow
def test_a_cut_at_any_change_of_a_flash(
    tmp_path: Path, prepared: Path, bundle_of: BundleOf, keys: Keys
) -> None:
    seen: set[tuple[str | None, str]] = set()

    def install(path: Path) -> None:
        flash(bundle_of("3"), path, keys.authority, prove=quick_prove)

    def check(path: Path) -> None:
        version = check_invariant(path)
        assert version in ("2", "3")
        store = SlotStore(path)
        other = store.slot(store.other())
        seen.add((version, other.state))
        # The next start works from whatever is there, and leaves nothing behind.
        change = flash(bundle_of("4"), path, keys.authority, prove=quick_prove)
        assert change.active.version == check_invariant(path) == "4" and not leftovers(path)
        assert change.previous is not None and change.previous.version == version
        rollback(path, prove=quick_prove)
        assert check_invariant(path) == version

    bundle_of("3"), bundle_of("4")
    changes = cut_everywhere(prepared, tmp_path, install, check)
    # Every row of the table in firmware_bridge/flash.py was met.
    assert seen == {("2", GOOD), ("2", EMPTY), ("2", UNTESTED), ("2", READY), ("3", GOOD)}
    assert changes > 20


@pytest.mark.slow
def test_a_cut_at_any_change_of_the_first_flash(tmp_path: Path, bundle_of: BundleOf, keys: Keys) -> None:
    def install(path: Path) -> None:
        flash(bundle_of("1"), path, keys.authority, prove=quick_prove)

    def check(path: Path) -> None:
        assert check_invariant(path) in (None, "1")
        install(path)
        assert check_invariant(path) == "1" and not leftovers(path)

    bundle_of("1")
    cut_everywhere(None, tmp_path, install, check)


def test_a_cut_at_any_change_of_a_rollback(tmp_path: Path, prepared: Path) -> None:
    def check(path: Path) -> None:
        before = check_invariant(path)
        assert before in ("1", "2")
        rollback(path, prove=quick_prove)
        assert check_invariant(path) == {"1": "2", "2": "1"}[before] and not leftovers(path)

    cut_everywhere(prepared, tmp_path, lambda path: rollback(path, prove=quick_prove), check)


@pytest.mark.slow
def test_a_cut_at_any_change_of_a_flash_that_fails_its_test(
    tmp_path: Path, prepared: Path, bundle_of: BundleOf, keys: Keys
) -> None:
    def install(path: Path) -> None:
        with pytest.raises(NotKeptError):
            flash(bundle_of("3", "wrong"), path, keys.authority, prove=quick_prove)

    def check(path: Path) -> None:
        assert check_invariant(path) == "2"
        store = SlotStore(path)
        assert store.slot("a").state in (GOOD, EMPTY, UNTESTED, BAD)
        if store.slot("a").state in (UNTESTED, BAD):
            with pytest.raises(SlotError, match="nothing to roll back to"):
                rollback(path, prove=quick_prove)

    bundle_of("3", "wrong")
    cut_everywhere(prepared, tmp_path, install, check)


def test_a_cut_at_any_change_of_a_flash_whose_device_is_missing(
    tmp_path: Path, prepared: Path, bundle_of: BundleOf, keys: Keys
) -> None:
    before = SlotStore(prepared).slots()

    def install(path: Path) -> None:
        with pytest.raises(BackendUnavailableError):
            flash(bundle_of("3", "no device"), path, keys.authority, prove=quick_prove)
        assert SlotStore(path).slots() == before and not leftovers(path)

    def check(path: Path) -> None:
        assert check_invariant(path) == "2"
        SlotStore(path).recover()
        assert SlotStore(path).slot("a").state in (GOOD, UNTESTED)

    bundle_of("3", "no device")
    cut_everywhere(prepared, tmp_path, install, check)


def test_the_disk_has_everything_before_the_link_moves(
    prepared: Path, bundle_of: BundleOf, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike a kill, a power cut loses what was not flushed: the order of flushes and renames counts."""
    events: list[tuple[str, str]] = []
    rename, replace, fsync = os.rename, os.replace, os.fsync

    def name(path: Any) -> str:
        return str(Path(os.fspath(path)).absolute().relative_to(prepared.resolve()))

    def logged(call: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Any, target: Any, **options: Any) -> None:
            call(source, target, **options)
            events.append(("move", name(target)))

        return moved

    def flushed(handle: int) -> None:
        fsync(handle)
        events.append(("flush", name(Path(f"/proc/self/fd/{handle}").readlink())))

    bundle = bundle_of("3")
    for attribute, call in (("rename", logged(rename)), ("replace", logged(replace)), ("fsync", flushed)):
        monkeypatch.setattr(os, attribute, call)
    flash(bundle, prepared, keys.authority, prove=quick_prove)
    monkeypatch.undo()

    placed, linked = events.index(("move", "a")), events.index(("move", "active"))
    before = {what for kind, what in events[:placed] if kind == "flush"}
    files = {f".edgeqc-staging/artifact/{file.name}" for file in (prepared / "a").iterdir()}
    assert {*files, ".edgeqc-staging/artifact"} <= before
    between = events[placed:linked]
    assert ("flush", ".") in between and ("move", "a.json") in between
    assert between.index(("flush", ".")) < between.index(("move", "a.json"))
    assert events[linked + 1] == ("flush", ".")


@pytest.mark.slow
def test_the_command_killed_at_random_moments(tmp_path: Path, bundle_of: BundleOf, keys: Keys) -> None:
    store = tmp_path / "store"
    flash(bundle_of("0"), store, keys.authority, prove=quick_prove)
    child = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from edge.cli import entry; entry()"
    for number in range(1, 13):
        bundle = bundle_of(str(number % 3))
        command = [sys.executable, "-c", child, json.dumps(sys.path), "flash", str(bundle), f"local:{store}"]
        process = subprocess.Popen(
            [*command, "--keyring", str(keys.authority)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(0.08 * number)
        with contextlib.suppress(ProcessLookupError):  # it had ended already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert check_invariant(store) is not None
    assert flash(bundle_of("9"), store, keys.authority, prove=quick_prove).active.version == "9"
    assert not leftovers(store)
