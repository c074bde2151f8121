from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge.folders import sha256
from firmware_bridge.errors import SlotError
from firmware_bridge.slots import BAD, EMPTY, GOOD, READY, UNTESTED, Slot, SlotStore


@pytest.fixture
def store(tmp_path: Path) -> SlotStore:
    made = SlotStore.at(tmp_path / "store")
    made.create("camera")
    return made


def fill(store: SlotStore, name: str, state: str | None = GOOD, text: str = "{}") -> Slot:
    """Put a folder with a manifest into a slot; with `state`, its record too."""
    folder = store.path / name
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(text)
    slot = Slot(
        name, state or UNTESTED, artifact="part", version="1", digest=sha256(folder / "manifest.json")
    )
    if state is not None:
        store.record(slot)
    return slot


def test_a_new_store_is_empty_and_the_first_installation_goes_to_a(store: SlotStore) -> None:
    assert store.active() is None and store.other() == "a" and store.compatible == "camera"
    assert [slot.state for slot in store.slots()] == [EMPTY, EMPTY]


@pytest.mark.parametrize("state", [UNTESTED, BAD, READY, GOOD])
def test_a_record_is_read_back_as_it_was_written(store: SlotStore, state: str) -> None:
    slot = fill(store, "b", state)
    store.record(replace(slot, reason="why", stand_in=True))
    assert store.slot("b") == replace(slot, reason="why", stand_in=True)


def test_a_record_speaks_only_for_the_manifest_that_it_names(store: SlotStore) -> None:
    fill(store, "a")
    (store.path / "a" / "manifest.json").write_text('{"changed": 1}')
    assert store.slot("a").state == UNTESTED


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": "good", "surprise": 1}', '{"state": 5}', "\x00"])
def test_a_damaged_record_vouches_for_nothing(store: SlotStore, text: str) -> None:
    fill(store, "a")
    (store.path / "a.json").write_text(text)
    assert store.slot("a").state == UNTESTED


def test_a_folder_without_a_manifest_is_bad(store: SlotStore) -> None:
    fill(store, "a")
    (store.path / "a" / "manifest.json").unlink()
    assert store.slot("a").state == BAD


def test_activation_moves_the_link_and_the_other_slot_becomes_free(store: SlotStore) -> None:
    fill(store, "a"), fill(store, "b")
    for name, other in (("a", "b"), ("b", "a")):
        store.activate(name)
        assert store.active() == name and store.other() == other
        assert (store.active_link / "manifest.json").samefile(store.path / name / "manifest.json")


@pytest.mark.parametrize("target", ["c", "../elsewhere", "/etc", "a/../b"])
def test_a_link_out_of_the_store_is_refused(store: SlotStore, target: str) -> None:
    store.active_link.symlink_to(target)
    with pytest.raises(SlotError, match="outside"):
        store.active()


def test_a_folder_in_place_of_the_link_is_refused(store: SlotStore) -> None:
    store.active_link.mkdir()
    with pytest.raises(SlotError, match="not a link"):
        store.active()


def test_recovery_removes_what_is_unfinished_and_nothing_else(store: SlotStore) -> None:
    fill(store, "a"), store.activate("a")
    store.staging.mkdir()
    (store.staging / "bundle.raucb").write_text("half")
    (store.path / ".a.json.x1y2").write_text("half")
    (store.path / ".active.new").symlink_to("b")
    (store.path / "notes.txt").write_text("somebody's")
    for _ in range(2):
        store.recover()
        left = sorted(entry.name for entry in store.path.iterdir())
        assert left == ["a", "a.json", "active", "notes.txt", "store.json"]


def test_recovery_completes_an_activation(store: SlotStore) -> None:
    fill(store, "a", READY), store.activate("a")
    fill(store, "b", READY)
    store.recover()
    assert [slot.state for slot in store.slots()] == [GOOD, READY]


def test_recovery_puts_back_a_slot_that_was_taken_out(store: SlotStore) -> None:
    fill(store, "a"), store.activate("a")
    fill(store, "b", text='{"version": 2}')
    store.staging.mkdir()
    (store.path / "b").rename(store.staging / "replaced-b")
    assert store.slot("b").state == EMPTY
    store.recover()
    assert store.slot("b").state == GOOD


def test_the_active_slot_is_never_overwritten(store: SlotStore) -> None:
    fill(store, "a"), store.activate("a")
    with pytest.raises(AssertionError):
        store.place(store.path / "staged", "a")


def test_one_change_at_a_time_and_no_change_during_a_test(store: SlotStore) -> None:
    other = SlotStore.open(store.path)
    with store.locked(exclusive=True):
        for exclusive in (True, False):
            with pytest.raises(SlotError, match="busy"), other.locked(exclusive=exclusive):
                pass
    third = SlotStore(store.path)
    with (
        store.locked(exclusive=False),
        other.locked(exclusive=False),  # two tests may run at once
        pytest.raises(SlotError, match="busy"),
        third.locked(exclusive=True),
    ):
        pass
    with other.locked(exclusive=True):
        pass


def test_a_lock_file_that_was_taken_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    store = SlotStore.at(tmp_path / "store")
    lock = store.path / "lock"
    plain = fcntl.flock
    taken = []

    def flock(handle: int, kind: int) -> None:
        if not taken:
            taken.append(lock.unlink())
        plain(handle, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with store.locked(exclusive=True):
        assert lock.exists()
        with pytest.raises(SlotError, match="busy"), SlotStore(store.path).locked(exclusive=True):
            pass


def test_somebodys_folder_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(SlotError, match="neither") as caught:
        SlotStore.at(tmp_path)
    assert caught.value.got == "photos"


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for opened in (SlotStore.at, SlotStore.open):
        with pytest.raises(SlotError):
            opened(tmp_path / "file")


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SlotError, match="no slot store") as caught:
        SlotStore.open(tmp_path)
    assert "edgeqc flash" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "edgeqc-slots/1"}', "\x00\x00"])
def test_a_damaged_store_file_is_named(store: SlotStore, text: str) -> None:
    (store.path / "store.json").write_text(text)
    with pytest.raises(SlotError, match="damaged"):
        SlotStore.open(store.path)


def test_a_later_format_is_refused(store: SlotStore) -> None:
    (store.path / "store.json").write_text(json.dumps({"format": "edgeqc-slots/2", "compatible": "x"}))
    with pytest.raises(SlotError, match="does not know"):
        SlotStore.open(store.path)
