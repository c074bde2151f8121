"""The shipping verbs: `keys`, `bundle`, `flash`, `slots`, `rollback`, `selftest`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.command import CHECK_FAILED, Command, Outcome
from edge.errors import InputError


def _configure_keys(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="new folder for the keys")
    parser.add_argument(
        "--algorithm", default="ec", metavar="NAME", help="ec (P-256, default) or rsa (3072 bits)"
    )
    parser.add_argument("--name", default="edgeqc", help="who signs; goes into the certificates")
    parser.add_argument("--days", type=int, default=3650, help="how long the certificates are valid (3650)")


def _run_keys(options: Namespace) -> Outcome:
    from firmware_bridge.keys import make_keys
    from firmware_bridge.selftest import columns

    keys = make_keys(options.folder, algorithm=options.algorithm, name=options.name, days=options.days)
    rows = [
        (str(keys.authority), "put this one on every camera: the keyring that bundles are checked against"),
        (str(keys.signer), "signs bundles: edgeqc bundle --cert"),
        (str(keys.signer_key), "signs bundles: edgeqc bundle --key; secret"),
        (str(keys.authority_key), "makes further signers; secret: move it offline now"),
    ]
    data = {
        "keyring": keys.authority,
        "cert": keys.signer,
        "key": keys.signer_key,
        "authority_key": keys.authority_key,
    }
    return Outcome("\n".join(columns(rows)), data)


def _configure_bundle(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="artifact folder that `edgeqc export` wrote")
    parser.add_argument("--key", required=True, help="signer.key.pem, or a pkcs11: address")
    parser.add_argument("--cert", required=True, help="signer.cert.pem, or a pkcs11: address")
    parser.add_argument("--out", type=Path, required=True, metavar="B.raucb", help="new bundle file")
    parser.add_argument(
        "--keyring", type=Path, help="check that cameras with this keyring accept the signature"
    )
    parser.add_argument("--compatible", metavar="NAME", help="kind of device (edgeqc-PROFILE)")
    parser.add_argument("--version", help="version of the bundle (the artifact's)")
    parser.add_argument(
        "--allow-rejected", action="store_true", help="ship an artifact that its gate rejected"
    )


def _run_bundle(options: Namespace) -> Outcome:
    from firmware_bridge.bundle import make_bundle

    bundle = make_bundle(
        options.artifact,
        options.out,
        key=options.key,
        cert=options.cert,
        keyring=options.keyring,
        compatible=options.compatible,
        version=options.version,
        allow_rejected=options.allow_rejected,
    )
    size_mib = bundle.size_bytes / 2**20
    text = (
        f"{bundle.path}: {size_mib:.2f} MiB, version {bundle.version}, for {bundle.compatible}\n"
        f"next: edgeqc flash {bundle.path} local:STORE --keyring ca.cert.pem"
    )
    return Outcome(text, asdict(bundle))


def _configure_flash(parser: ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="bundle file")
    parser.add_argument(
        "to", metavar="local:PATH", help="where the slot store is; made at the first installation"
    )
    parser.add_argument(
        "--keyring", type=Path, required=True, metavar="CA", help="ca.cert.pem of the trusted authority"
    )
    parser.add_argument(
        "--compatible", metavar="NAME", help="kind of this device (the store's; the first bundle sets it)"
    )
    parser.add_argument(
        "--allow-rejected", action="store_true", help="install an artifact that its gate rejected"
    )
    _add_device(parser)


def _add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", help="device of the runtime, e.g. CPU or edgetpu:0 (the artifact's own)")
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="test on the artifact's stand-in; the result is marked, never implied",
    )


def _run_flash(options: Namespace) -> Outcome:
    from firmware_bridge.flash import NotKeptError
    from firmware_bridge.transports import Order, find_transport

    transport, location = find_transport(options.to)
    order = Order(options.compatible, options.device, options.stand_in, options.allow_rejected)
    try:
        change = transport.flash(options.bundle, location, options.keyring, order)
    except NotKeptError as error:
        return _not_kept(error)
    return _changed(change, "installed")


def _not_kept(error: Any) -> Outcome:
    from firmware_bridge.selftest import table

    data = {"kept": False, "slot": asdict(error.slot), "selftest": error.test.as_json()}
    return Outcome(f"{table(error.test)}\n\n{error}", data, CHECK_FAILED)


def _changed(change: Any, verb: str) -> Outcome:
    from firmware_bridge.selftest import table

    slot, previous = change.active, change.previous
    lines = [table(change.test), "", f"{verb}: {slot.artifact} {slot.version} is active in slot {slot.name}"]
    if previous is not None:
        was = f"{previous.artifact} {previous.version} in slot {previous.name}"
        lines.append(f"before: {was}; back with `edgeqc rollback`")
    lines.append("a runtime that is already running keeps its model until it is restarted")
    data = {
        "kept": True,
        "slot": asdict(slot),
        "previous": asdict(previous) if previous else None,
        "selftest": change.test.as_json(),
    }
    return Outcome("\n".join(lines), data)


def _configure_store(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="slot store")


def _run_slots(options: Namespace) -> Outcome:
    from firmware_bridge.selftest import columns
    from firmware_bridge.slots import SlotStore

    store = SlotStore.open(options.path)
    active = store.active()
    slots = store.slots()
    rows: list[tuple[str, ...]] = [
        ("slot", "state", "artifact", "version", "target", "precision", "installed", "digest")
    ]
    for slot in slots:
        state = (
            ("active, " if slot.name == active else "")
            + slot.state
            + (" (stand-in)" if slot.stand_in else "")
        )
        cells = (
            slot.artifact,
            slot.version,
            slot.target,
            slot.precision,
            slot.installed_at,
            slot.digest[:12],
        )
        rows.append((slot.name, state, *(cell or "-" for cell in cells)))
    lines = [f"{store.path}, for {store.compatible}", *columns(rows)]
    lines += [f"slot {slot.name} is {slot.state}: {slot.reason}" for slot in slots if slot.reason]
    if any(slot.stand_in for slot in slots):
        lines.append("(stand-in): its self-test ran on a stand-in, not verified on device")
    data = {
        "path": str(store.path),
        "compatible": store.compatible,
        "active": active,
        "slots": [{**asdict(slot), "active": slot.name == active} for slot in slots],
    }
    return Outcome("\n".join(lines), data)


def _configure_rollback(parser: ArgumentParser) -> None:
    _configure_store(parser)
    _add_device(parser)


def _run_rollback(options: Namespace) -> Outcome:
    from firmware_bridge.flash import NotKeptError, rollback

    try:
        return _changed(
            rollback(options.path, device=options.device, stand_in=options.stand_in), "rolled back"
        )
    except NotKeptError as error:
        return _not_kept(error)


def _configure_selftest(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, nargs="?", help="artifact folder")
    parser.add_argument(
        "--slots", type=Path, metavar="PATH", help="test the active slot of this slot store instead"
    )
    _add_device(parser)


def _run_selftest(options: Namespace) -> Outcome:
    from edge.progress import step
    from firmware_bridge.selftest import selftest, table

    if (options.artifact is None) == (options.slots is None):
        raise InputError(
            "nothing, or two things, to test",
            wanted="an artifact folder, or --slots PATH",
            next_step="edgeqc selftest ARTIFACT   or   edgeqc selftest --slots PATH",
        )
    with step("self-test"):
        if options.slots is not None:
            test = _test_active(options)
        else:
            test = selftest(options.artifact, device=options.device, stand_in=options.stand_in)
    return Outcome(table(test), test.as_json(), test.exit_code)


def _test_active(options: Namespace) -> Any:
    """The self-test of the active slot, with a row for the slot itself in front."""
    from firmware_bridge.selftest import FAIL, PASS, Check, SelfTest, selftest
    from firmware_bridge.slots import EMPTY, GOOD, READY, SlotStore

    store = SlotStore.open(options.slots)
    with store.locked(exclusive=False):
        active = store.active()
        if active is None:
            found, advice = "no slot is active", "flash a bundle: edgeqc flash BUNDLE local:PATH --keyring CA"
            return SelfTest(str(store.path), (Check("slot", FAIL, found, advice),))
        slot = store.slot(active)
        if slot.state in (GOOD, READY):
            row = Check("slot", PASS, f"{active} is active, installed {slot.installed_at}")
        else:
            advice = f"edgeqc rollback {store.path}, or flash the bundle again"
            row = Check("slot", FAIL, f"{active} is active, but {slot.state} {slot.reason}".strip(), advice)
        if slot.state == EMPTY:
            return SelfTest(str(store.folder(active)), (row,))
        return selftest(store.folder(active), device=options.device, stand_in=options.stand_in).with_checks(
            row
        )


keys = Command("make signing keys: an authority for the cameras and a signer", _configure_keys, _run_keys)
bundle = Command("sign an artifact into a bundle", _configure_bundle, _run_bundle)
flash = Command(
    "install a bundle into the inactive slot, test it, make it active", _configure_flash, _run_flash
)
slots = Command("show what is in the slots", _configure_store, _run_slots)
rollback = Command("make the other slot active again", _configure_rollback, _run_rollback)
selftest = Command("is this artifact healthy on this device", _configure_selftest, _run_selftest)
