"""`make bench-mtd-first`: train, evaluate, export, parity, bench, self-test on the Magnetic-Tile photographs.

Resumes: a step whose output is there already is not run again (remove the folder under --work to repeat it).
Writes benchmarks/results/mtd-first.json; images and weights stay in --work.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from benchmarks import results_file
from benchmarks.steps import edgeqc, elapsed_s

TARGETS = ("openvino", "tensorrt", "edgetpu")
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/datasets/mtd"))
    parser.add_argument("--work", type=Path, default=Path("runs/mtd-first"))
    options = parser.parse_args()
    work, data = options.work, options.data
    (work / "json").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []

    def add(id: str, what: str, value: Any, **facts: Any) -> None:
        rows.append(results_file.row(id, what, value, **facts))

    run = work / "run"
    edgeqc(work, "train", "train", "--data", data, "--out", run, "--seed", SEED)
    facts = json.loads((run / "run.json").read_text())
    note = f"{results_file.pretrained(facts['training'])}; trained {facts['created'][:16]}"
    minutes = elapsed_s(work, "train") / 60
    what = "`edgeqc train`, no flag but --data, --out and --seed"
    add("train.time", what, minutes, unit="min", bar="<= 20", passed=minutes <= 20, note=note)
    _, test = edgeqc(work, "evaluate", "evaluate", run, "--data", data, "--split", "test")
    sample, seg = test["sample"], test["seg"]
    what = "sample AP, `test`, full precision"
    add("test.ap", what, sample["ap"], bar=">= 0.91", passed=sample["ap"] >= 0.91)
    for key in ("auroc", "recall", "precision", "f1", "misses", "false_alarms"):
        add(f"test.{key}", f"sample {key}, `test`, full precision", sample[key])
    for key in ("seg_miou", "seg_recall", "miou", "mpa"):
        add(f"test.{key}", f"{key}, `test`, full precision", seg[key])

    artifacts = []
    for target in TARGETS:
        label, out = f"export-{target}", work / "artifacts" / target
        code, exported = edgeqc(work, label, "export", run, "--target", target, "--data", data, "--out", out)
        artifacts.append(Path(exported["artifact"]))
        tried = "; ".join(
            f"{c['precision']}: {c['row']['flips']} flips of {c['row']['n']}, "
            f"masks {c['row']['mask_agreement_iou']:.3f}"
            for c in exported["candidates"]
        )
        what = f"{target}: precision that kept the budget on `val`"
        kept = exported["precision"] if code == 0 else "rejected"
        add(f"{target}.gate", what, kept, bar="the default budget", passed=code == 0, note=tried)
        add(f"{target}.export", f"{target}: `edgeqc export`", elapsed_s(work, label), unit="s")

    words = ("--reference", run, "--data", data, "--split", "test", "--out", work / "parity")
    _, parity = edgeqc(work, "parity", "parity", *artifacts, *words)
    for target, artifact, result in zip(TARGETS, artifacts, parity["artifacts"]):
        where = " ".join(str(result["ran_on"][key]) for key in ("sdk", "version", "device"))
        note = f"stand-in, not verified on device: {where}" if result["stand_in"] else where
        name = f"{target} {result['precision']}"
        what = f"{name}: verdicts flipped on `test` of {result['n']}"
        add(f"{target}.flips", what, result["flips"], note=note)
        add(f"{target}.new_misses", f"{name}: new misses on `test`", result["new_misses"])
        add(f"{target}.masks", f"{name}: mask agreement on `test`", result["mask_agreement_iou"])
        add(f"{target}.seg_recall", f"{name}: Seg_Recall change on `test`", result["delta"]["seg_recall"])
        _, bench = edgeqc(work, f"bench-{target}", "bench", artifact, "--frame", "256x256", "--stand-in")
        for quantile in ("p50", "p99"):
            what = f"{name}: latency {quantile}, 256x256 frame"
            add(f"{target}.latency_{quantile}", what, bench["latency_ms"][quantile], unit="ms", note=note)
        add(f"{target}.size", f"{name}: model size", bench["size_bytes"] / 1024, unit="KiB")
        code, _ = edgeqc(work, f"selftest-{target}", "selftest", artifact, "--stand-in")
        said = "passed" if code == 0 else "failed"
        add(f"{target}.selftest", f"{name}: self-test", said, bar="passed", passed=code == 0, note=note)
    for (one, other), pair in zip(itertools.combinations(TARGETS, 2), parity["cross"]):
        add(f"cross.{one}.{other}", f"verdicts that differ on `test`, {one} against {other}", pair["flips"])
    sinks = ("--sink", f"overlay:{work / 'overlays'}", "--sink", f"jsonl:{work / 'verdicts.jsonl'}")
    edgeqc(work, "run", "run", artifacts[0], data, "--limit", 40, *sinks)
    print(results_file.write("mtd-first", "make bench-mtd-first", [SEED], rows))


if __name__ == "__main__":
    main()
