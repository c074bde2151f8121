"""Whatever the sequence of flash, refusal, rollback and power cut: the active slot is whole and good."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from test_bridge_power_cuts import check_invariant, leftovers

from bridge_artifacts import CUT, BundleOf, cut_power, quick_prove
from firmware_bridge.flash import flash, rollback
from firmware_bridge.keys import Keys
from firmware_bridge.slots import GOOD, SlotStore

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

ACTIONS = st.sampled_from(["1", "2", "3", "fails", "absent", "refused", "other device", "rollback"])
CUTS = st.one_of(st.none(), st.integers(1, 60))


@pytest.mark.slow
@hypothesis.settings(
    max_examples=20, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True, deadline=None
)
@hypothesis.given(steps=st.lists(st.tuples(ACTIONS, CUTS), min_size=1, max_size=8))
def test_the_active_slot_is_always_whole_and_good(
    steps: list[tuple[str, int | None]], bundle_of: BundleOf, keys: Keys, strangers_keys: Keys
) -> None:
    with tempfile.TemporaryDirectory() as place:
        store = Path(place) / "store"
        for action, cut in steps:
            before = check_invariant(store)
            behind = _version_behind(store)

            def act(action: str = action) -> None:
                if action == "rollback":
                    rollback(store, prove=quick_prove)
                    return
                version, behaviour, compatible, keyring = action, "ok", "camera", keys.authority
                if action == "fails":
                    version, behaviour = "8", "wrong"
                elif action == "absent":
                    version, behaviour = "9", "no device"
                elif action == "refused":
                    version, keyring = "1", strangers_keys.authority
                elif action == "other device":
                    version, compatible = "1", "toaster"
                bundle = bundle_of(version, behaviour, compatible)
                flash(bundle, store, keyring, compatible="camera", prove=quick_prove)

            code = cut_power(cut, act)
            after = check_invariant(store)
            target = behind if action == "rollback" else action if action in "123" else None
            if code == CUT:
                assert after in (before, target)
            elif target is not None:
                assert code == 0 and after == target
            else:
                assert code == 2 and after == before
            if code != CUT and store.exists():
                assert not leftovers(store)


def _version_behind(path: Path) -> str | None:
    """The version that a rollback would bring back."""
    store = SlotStore(path)
    if not path.exists() or store.active() is None:
        return None
    store.recover()  # as the next change does, before it looks
    slot = store.slot(store.other())
    return slot.version if slot.state == GOOD else None
