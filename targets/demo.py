"""`edgeqc demo`: the whole way on synthetic surfaces, as the very verbs that a user would type.

It drives the command line and nothing behind it, so what it shows is what the README promises.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from edge import cli
from edge.command import CHECK_FAILED, DONE, MISSING, Outcome
from edge.errors import InputError
from edge.predictions import Predictions
from edge.samples import read_samples
from targets.errors import TargetError
from targets.report import text

TARGETS = ("openvino", "edgetpu", "tensorrt")
SURFACES = 900
SIZE_PX = 128
EPOCHS = 32
TRAINING_LIMIT_MIN = 3  # on a slower machine the schedule shortens, so that the whole way stays within 6


class DemoStoppedError(TargetError):
    """A step failed that the others need; leaves with that step's exit code."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what, next_step="see the message above")
        self.exit_code = code  # type: ignore[misc]  # this one error speaks for another


class _Story:
    """Runs verbs one after the other, prints each as it would be typed, and remembers how they ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codes: dict[str, int] = {}

    def run(self, *arguments: object, label: str | None = None) -> Any:
        """Run one verb; return what it wrote as JSON, or None when it wrote nothing."""
        words = [str(argument) for argument in arguments]
        label = label or words[0]
        print(f"\n$ edgeqc {shlex.join(words)}", flush=True)
        result = self.folder / "json" / f"{label}.json"
        self.codes[label] = cli.main([*words, "--json", str(result)])
        return json.loads(result.read_text()) if self.codes[label] in (DONE, CHECK_FAILED) else None

    def must(self, *arguments: object, label: str | None = None) -> Any:
        """Run a verb that the rest of the story needs.

        Raises:
            DemoStoppedError: it gave no result; its own message is on the screen.
        """
        result = self.run(*arguments, label=label)
        if result is None:
            name = label or str(arguments[0])
            raise DemoStoppedError(f"the demo ends here: `{name}` gave no result", self.codes[name])
        return result


def demo(folder: Path, seed: int = 0) -> Outcome:
    """Run the story in `folder`, which must be new or the demo's own; return the closing table.

    Raises:
        InputError: `folder` exists and was not written by the demo.
    """
    start = time.monotonic()
    _prepare(folder)
    story = _Story(folder)
    data, run, report = folder / "surfaces", folder / "run", folder / "parity"
    _write_surfaces(data, seed)

    story.must("train", "--data", data, "--out", run, "--size", "nano", "--from-scratch",
              "--input-size", SIZE_PX, "--epochs", EPOCHS,
              "--time-limit-min", TRAINING_LIMIT_MIN, "--seed", seed)  # fmt: skip
    story.run("evaluate", run, "--data", data, "--split", "test")
    artifacts = []
    for target in TARGETS:
        out = folder / "artifacts" / target
        story.must("export", run, "--target", target, "--data", data, "--out", out, label=f"export-{target}")
        artifacts.append(out if out.is_dir() else out.with_name(out.name + ".rejected"))
    compared = story.must(
        "parity", *artifacts, "--reference", run, "--data", data, "--split", "test", "--out", report
    )
    story.run("run", artifacts[0], data, "--limit", 24, "--sink", f"overlay:{folder / 'overlays'}",
              "--sink", f"jsonl:{folder / 'verdicts.jsonl'}")  # fmt: skip
    benches = [
        story.must(
            "bench", artifact, "--frame", f"{SIZE_PX}x{SIZE_PX}", "--stand-in", label=f"bench-{artifact.name}"
        )
        for artifact in artifacts
    ]
    _ship(story, folder, artifacts[0])
    _draw(folder / "picture.png", data, report, compared["artifacts"])

    rows = [_row(row, bench) for row, bench in zip(compared["artifacts"], benches)]
    failed = sorted(label for label, code in story.codes.items() if code not in (DONE, MISSING))
    missing = sorted(label for label, code in story.codes.items() if code == MISSING)
    lines = ["", _table(rows), "", f"report:  {report / 'report.html'}", f"picture: {folder / 'picture.png'}"]
    if missing:
        lines.append(f"left out, something is missing on this machine (see above): {', '.join(missing)}")
    if failed:
        lines.append(f"did not pass: {', '.join(failed)}")
    elapsed_s = time.monotonic() - start
    lines.append(f"the whole way took {elapsed_s / 60:.1f} minutes")
    outcome = {
        "rows": rows,
        "exit_codes": story.codes,
        "elapsed_s": elapsed_s,
        "report": report / "report.html",
    }
    return Outcome("\n".join(lines), outcome, CHECK_FAILED if failed else DONE)


_MARK = "edgeqc-demo.json"


def _prepare(folder: Path) -> None:
    """Make the folder anew; a folder that is not the demo's own is never touched."""
    if folder.exists():
        if not (folder / _MARK).is_file():
            raise InputError(
                f"{folder} exists and was not written by the demo", next_step="choose another --out"
            )
        shutil.rmtree(folder)
    (folder / "json").mkdir(parents=True)
    (folder / _MARK).write_text("{}\n")


def _write_surfaces(data: Path, seed: int) -> None:
    from quantize.data.synthetic import write_surfaces

    print(f"{SURFACES} synthetic surfaces of {SIZE_PX} x {SIZE_PX} pixels -> {data}", flush=True)
    write_surfaces(data, count=SURFACES, size=SIZE_PX, seed=seed)


def _ship(story: _Story, folder: Path, artifact: Path) -> None:
    """Sign, install into a local slot, self-test. Without rauc the verbs say what to type, and we go on."""
    bundle, camera = folder / "camera.raucb", folder / "camera"
    keys = story.run("keys", folder / "keys")
    if keys is not None:
        story.run("bundle", artifact, "--key", keys["key"], "--cert", keys["cert"], "--out", bundle)
    if story.codes.get("bundle") == DONE:
        story.run("flash", bundle, f"local:{camera}", "--keyring", keys["keyring"])
        story.run("slots", camera)
        story.run("selftest", "--slots", camera)
    else:
        print("no bundle, so the artifact is tested where it lies", file=sys.stderr)
        story.run("selftest", artifact)


def _draw(path: Path, data: Path, report: Path, rows: list[dict[str, Any]]) -> None:
    """A few samples of `test` side by side, from the predictions that parity kept."""
    from targets.report.contact_sheet import write_contact_sheet

    predictions = report / "predictions"
    devices = [
        (row["target"], Predictions.load(next(predictions.glob(f"{number}-*.npz"))))
        for number, row in enumerate(rows, 1)
    ]
    reference = Predictions.load(predictions / "reference.npz")
    write_contact_sheet(path, read_samples(data, "test"), reference, devices)


def _row(row: dict[str, Any], bench: dict[str, Any]) -> dict[str, Any]:
    return {
        "target": row["target"],
        "precision": row["precision"],
        "size_bytes": bench["size_bytes"],
        "latency_p50_ms": bench["latency_ms"]["p50"],
        "latency_p99_ms": bench["latency_ms"]["p99"],
        "ran_on": row["ran_on"],
        "stand_in": row["stand_in"],
        "n": row["n"],
        "flips": row["flips"],
        "seg_recall_change": row["delta"]["seg_recall"],
        "mask_agreement_iou": row["mask_agreement_iou"],
        "passed": row["passed"],
    }


def _table(rows: list[dict[str, Any]]) -> str:
    head = (
        "artifact",
        "size KiB",
        "p50 ms",
        "p99 ms",
        "ran on",
        "flips",
        "Seg_Recall",
        "masks agree",
        "passed",
    )
    cells = [head]
    for row in rows:
        cells.append(
            (
                f"{row['target']} {row['precision']}",
                f"{row['size_bytes'] / 1024:.0f}",
                f"{row['latency_p50_ms']:.2f}",
                f"{row['latency_p99_ms']:.2f}",
                text.where(row["ran_on"]) + (f" ({text.STAND_IN})" if row["stand_in"] else ""),
                f"{row['flips']} of {row['n']}",
                text.number(row["seg_recall_change"], "+.3f"),
                text.number(row["mask_agreement_iou"]),
                "yes" if row["passed"] else "NO",
            )
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
