"""`make bench-mtd-first`: train, evaluate, export, parity, bench, self-test on the Magnetic-Tile photographs.

Resumes: a step whose output is there already is not run again (remove the folder under --work to repeat it).
Writes benchmarks/results/mtd-first.json; images and weights stay in --work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import results_file

TARGETS = ("openvino", "tensorrt", "edgetpu")
SEED = 0


def edgeqc(work: Path, label: str, *words: object) -> tuple[int, Any]:
    """Run one verb in a process of its own, as a user does; return its exit code and its JSON."""
    output = work / "json" / f"{label}.json"
    if output.is_file():
        record = json.loads(output.read_text())
        return record["exit_code"], record["result"]
    command = [
        str(Path(sys.executable).with_name("edgeqc")),
        *map(str, words),
        "--json",
        str(output) + ".new",
    ]
    print("$ edgeqc", *map(str, words), flush=True)
    start = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    if code in (1, 2, 4):
        raise SystemExit(f"{label} ended with exit code {code}")
    result = json.loads(Path(str(output) + ".new").read_text())
    record = {"exit_code": code, "elapsed_s": time.monotonic() - start, "result": result}
    output.write_text(json.dumps(record))
    Path(str(output) + ".new").unlink()
    return code, result


def elapsed_s(work: Path, label: str) -> float:
    """Wall-clock seconds that the step took when it ran."""
    return float(json.loads((work / "json" / f"{label}.json").read_text())["elapsed_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/datasets/mtd"))
    parser.add_argument("--work", type=Path, default=Path("runs/mtd-first"))
    options = parser.parse_args()
    work, data = options.work, options.data
    (work / "json").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    row = results_file.row

    run = work / "run"
    edgeqc(work, "train", "train", "--data", data, "--out", run, "--seed", SEED)
    facts = json.loads((run / "run.json").read_text())
    minutes = elapsed_s(work, "train") / 60
    rows.append(row("train.time", "`edgeqc train`, no flag but --data and --out", minutes, "min", "<= 20", minutes <= 20,
                    f"encoder: {facts['training'].get('pretrained', {})}"))  # fmt: skip
    _, test = edgeqc(work, "evaluate", "evaluate", run, "--data", data, "--split", "test")
    sample, seg = test["sample"], test["seg"]
    rows.append(
        row("test.ap", "sample AP, `test`, full precision", sample["ap"], "", ">= 0.91", sample["ap"] >= 0.91)
    )
    for key in ("auroc", "recall", "precision", "f1", "misses", "false_alarms"):
        rows.append(row(f"test.{key}", f"sample {key}, `test`, full precision", sample[key]))
    for key in ("seg_miou", "seg_recall", "miou", "mpa"):
        rows.append(row(f"test.{key}", f"{key}, `test`, full precision", seg[key]))

    artifacts = []
    for target in TARGETS:
        out = work / "artifacts" / target
        code, exported = edgeqc(
            work, f"export-{target}", "export", run, "--target", target, "--data", data, "--out", out
        )
        artifacts.append(Path(exported["artifact"]))
        tried = "; ".join(
            f"{c['precision']}: {c['row']['flips']} flips of {c['row']['n']}, masks {c['row']['mask_agreement_iou']:.3f}"
            for c in exported["candidates"]
        )
        rows.append(row(f"{target}.gate", f"{target}: precision that kept the budget on `val`",
                        exported["precision"] if code == 0 else "rejected", "", "flips <= 2 % of val", code == 0, tried))  # fmt: skip
        rows.append(
            row(f"{target}.export", f"{target}: `edgeqc export`", elapsed_s(work, f"export-{target}"), "s")
        )
    _, parity = edgeqc(work, "parity", "parity", *artifacts, "--reference", run, "--data", data, "--split", "test",
                       "--out", work / "parity")  # fmt: skip
    for target, artifact, result in zip(TARGETS, artifacts, parity["artifacts"]):
        note = ("stand-in, not verified on device: " if result["stand_in"] else "") + " ".join(
            str(result["ran_on"][key]) for key in ("sdk", "version", "device")
        )
        name = f"{target} {result['precision']}"
        rows.append(
            row(
                f"{target}.flips",
                f"{name}: verdicts flipped on `test` of {result['n']}",
                result["flips"],
                "",
                None,
                None,
                note,
            )
        )
        rows.append(row(f"{target}.new_misses", f"{name}: new misses", result["new_misses"]))
        rows.append(row(f"{target}.masks", f"{name}: mask agreement", result["mask_agreement_iou"]))
        rows.append(row(f"{target}.seg_recall", f"{name}: Seg_Recall change", result["delta"]["seg_recall"]))
        _, bench = edgeqc(work, f"bench-{target}", "bench", artifact, "--frame", "256x256", "--stand-in")
        for quantile in ("p50", "p99"):
            rows.append(row(f"{target}.latency_{quantile}", f"{name}: latency {quantile}, 256x256 frame",
                            bench["latency_ms"][quantile], "ms", None, None, note))  # fmt: skip
        rows.append(row(f"{target}.size", f"{name}: model size", bench["size_bytes"] / 1024, "KiB"))
        code, _ = edgeqc(work, f"selftest-{target}", "selftest", artifact, "--stand-in")
        rows.append(
            row(
                f"{target}.selftest",
                f"{name}: self-test",
                "passed" if code == 0 else "failed",
                "",
                "passed",
                code == 0,
                note,
            )
        )
    for pair in parity["cross"]:
        rows.append(
            row(
                f"cross.{pair['a']}.{pair['b']}",
                f"verdicts that differ, {pair['a']} against {pair['b']}",
                pair["flips"],
            )
        )
    edgeqc(work, "run", "run", artifacts[0], data, "--limit", 40, "--sink", f"overlay:{work / 'overlays'}",
           "--sink", f"jsonl:{work / 'verdicts.jsonl'}")  # fmt: skip
    print(results_file.write("mtd-first", "make bench-mtd-first", [SEED], rows))


if __name__ == "__main__":
    main()
