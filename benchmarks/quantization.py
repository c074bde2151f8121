"""`make bench-quantization`: what int8 changes of verdicts and masks, on three targets, for every kind of network.

Takes the networks that `make bench-quality` trained (seed 0); what was not trained, or not asked for, says `not run`.
Each is put on the grid as `edgeqc export` does it, and once more after `edgeqc train --qat`. Resumes like
`bench-mtd-first`. Writes benchmarks/results/quantization.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import results_file
from benchmarks.quality.systems import DEFAULT, EPOCHS, Plan, default_systems
from benchmarks.steps import edgeqc, elapsed_s
from targets.tried import grid_name

SEED = 0
TARGETS = ("openvino", "tensorrt", "edgetpu", "onnx")
DEVICES = TARGETS[:3]
# OpenVINO's own quantizer, to compare with: the bars are not its own.
NNCF = "openvino-nncf"
NETWORKS = (DEFAULT, "pixel-confidence", "weak")
GRIDS = ("calibrated", "tuned")
NO_LIMITS = tuple(
    f"--{limit}=none"
    for limit in ("max-flips", "max-new-misses", "min-mask-agreement", "max-f1-drop", "max-seg-recall-drop")
)
WHAT = {"calibrated": "grid from calibration", "tuned": "grid tuned by --qat"}


def main(words: Sequence[str] | None = None) -> None:
    options = _options(words)
    (options.work / "json").mkdir(parents=True, exist_ok=True)
    plans = {system.id: Plan(system, SEED, system.epochs or EPOCHS) for system in default_systems()}
    rows: list[dict[str, Any]] = []
    for network, grid in itertools.product(NETWORKS, GRIDS):
        source = options.quality / "runs" / plans[network].label / "run"
        asked = network in options.networks and grid in options.grids and (source / "run.json").is_file()
        rows += _measure(options, network, grid, source) if asked else [_not_run(network, grid)]
    print(results_file.write("quantization", "make bench-quantization", [SEED], rows))


def _measure(options: argparse.Namespace, network: str, grid: str, source: Path) -> list[dict[str, Any]]:
    """Rows of one network on one grid."""
    label = f"{network}-{grid}"
    work, data = options.work, options.data
    rows: list[dict[str, Any]] = []

    def add(id: str, what: str, value: Any, **facts: Any) -> None:
        rows.append(results_file.row(f"{label}.{id}", f"{network}, {WHAT[grid]}: {what}", value, **facts))

    run = source
    if grid == "tuned":
        run = work / "runs" / label
        code, said = edgeqc(
            work, f"{label}-train", "train", "--qat", source, "--data", data, "--out", run, "--seed", SEED
        )
        distance = said["val_distance"]
        add("distance", "from full precision on `val` before and after tuning, logits near the thresholds",
            f"{distance['before']:.3f}, {distance['after']:.3f}")  # fmt: skip
        add("time", "`edgeqc train --qat`", said["seconds"] / 60, unit="min")
    artifacts = []
    for target in TARGETS:
        out = work / "artifacts" / label / target
        step = f"{label}-export-{target}"
        code, said = edgeqc(
            work, step, "export", run, "--target", target, "--data", data, "--out", out, "--precision", "int8"
        )
        artifacts.append(Path(said["artifact"]))
        add(f"{target}.gate", f"{target} int8 keeps the default budget on `val`", "yes" if code == 0 else "no",
            note=" | ".join(map(_tried, said["candidates"])))  # fmt: skip
        seconds = elapsed_s(work, step)
        tries = len(said["candidates"])
        add(f"{target}.export", f"`edgeqc export --target {target}`, {tries} grids tried", seconds, unit="s")
    out, step = work / "artifacts" / label / "first", f"{label}-export-first"
    with _empty_cache():  # the grids of the exports above are in the user's
        edgeqc(
            work, step, "export", run, "--target", "edgetpu", "--data", data, "--out", out, "--precision", "int8",
            *NO_LIMITS,
        )  # fmt: skip
    seconds = elapsed_s(work, step)
    add("export", "`edgeqc export --target edgetpu` whose first grid passes, without limits", seconds, unit="s",
        bar="<= 90", passed=seconds <= 90)  # fmt: skip
    names = TARGETS
    if grid == "calibrated":
        names, out = (*TARGETS, NNCF), work / "artifacts" / label / "nncf"
        edgeqc(
            work, f"{label}-export-nncf", "export", run, "--target", "openvino", "--data", data, "--out", out,
            "--precision", "nncf", *NO_LIMITS,
        )  # fmt: skip
        artifacts.append(out)
    words = ("--reference", run, "--data", data, "--split", "test", "--out", work / "parity" / label)
    _, parity = edgeqc(work, f"{label}-parity", "parity", *artifacts, *words)
    for target, row in zip(names, parity["artifacts"], strict=True):
        _add_parity(add, target, row)
    pairs = dict(zip(itertools.combinations(names, 2), parity["cross"], strict=True))
    for (one, other), pair in pairs.items():
        if one in DEVICES and other in DEVICES:
            add(f"cross.{one}.{other}", f"verdicts that differ on `test`, {one} against {other}", pair["flips"],
                bar="0", passed=pair["flips"] == 0)  # fmt: skip
    step_logits = _manifest(artifacts[TARGETS.index("onnx")])["golden"]["step"]
    steps = pairs["edgetpu", "onnx"]["score_max_abs_diff"] / step_logits
    add("litert.onnx", "LiteRT against onnxruntime on `test`, largest score change in output steps", steps,
        bar="<= 2", passed=steps <= 2.01)  # fmt: skip
    _add_lowering(add, artifacts)
    return rows


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Let verbs find no grid that was made before."""
    before = os.environ.get("XDG_CACHE_HOME")
    with TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _tried(candidate: dict[str, Any]) -> str:
    """One grid that export tried, and what the gate said."""
    reasons = "; ".join(candidate["reasons"]) or "passed"
    return f"int8{grid_name(candidate['ranges'], candidate['widening'])}: {reasons}"


def _add_parity(add: Any, target: str, row: dict[str, Any]) -> None:
    where = " ".join(str(row["ran_on"][key]) for key in ("sdk", "version", "device"))
    note = f"stand-in, not verified on device: {where}" if row["stand_in"] else where

    def judged(key: str, what: str, value: float, bar: str, passed: bool, note: str = "") -> None:
        facts = {} if target == NNCF else {"bar": bar, "passed": passed}
        add(f"{target}.{key}", f"{target}, {what} on `test`", value, note=note, **facts)

    flips, misses = row["flips"], row["new_misses"]
    allowed = math.floor(row["n"] / 260)
    judged("flips", f"verdicts flipped of {row['n']}", flips, f"<= {allowed}", flips <= allowed, note)
    judged("new_misses", "new misses", misses, "0", misses == 0)
    agreement = row["mask_agreement_iou"]
    spread = f"mean {row['mask_agreement_mean']:.3f}, 10th percentile {row['mask_agreement_p10']:.3f}"
    judged("masks", "mask agreement", agreement, ">= 0.97", agreement >= 0.97, spread)
    for key, name in (("seg_recall", "Seg_Recall"), ("f1", "F1")):
        change = row["delta"][key]
        judged(key, f"{name} change", change, ">= -0.005", change >= -0.005)


def _add_lowering(add: Any, artifacts: Sequence[Path]) -> None:
    openvino, tensorrt, edgetpu = (_manifest(artifacts[TARGETS.index(name)])["lowering"] for name in DEVICES)
    on_cpu, unknown = edgetpu["lint"]["on_cpu"], edgetpu["lint"]["unknown"]
    add("edgetpu.cpu", "operations of the Edge TPU file predicted on the CPU", sum(on_cpu.values()), bar="0",
        passed=not on_cpu, note=f"unknown: {', '.join(unknown) or 'none'}")  # fmt: skip
    builder = tensorrt["builder"]["checked_by"]
    add("tensorrt.builder", "the Q/DQ ONNX is built by NVIDIA's builder", "yes" if builder else None, bar="yes",
        passed=True if builder else None, note=builder or tensorrt["builder"]["note"])  # fmt: skip
    share = int8_share(artifacts[TARGETS.index("openvino")] / "model.xml")
    add("openvino.int8", f"multiply-accumulates that OpenVINO {openvino['openvino'].split('-')[0]} runs in int8", share,
        bar=">= 0.9", passed=share >= 0.9)  # fmt: skip


def int8_share(model: Path) -> float:
    """Share of the convolutions' multiply-accumulates that OpenVINO's execution graph runs in int8 on this CPU."""
    from edge.backend import find_backend

    ov = find_backend("openvino").sdk()
    core = ov.Core()
    graph = core.read_model(model)
    work = {}
    for op in graph.get_ops():
        if op.get_type_name() in ("Convolution", "GroupConvolution"):
            kernel = list(op.input(1).get_shape())
            inputs = kernel[1:] if op.get_type_name() == "Convolution" else kernel[2:]
            work[op.get_friendly_name()] = math.prod(op.output(0).get_shape()) * math.prod(inputs)
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    in_int8 = 0
    for op in compiled.get_runtime_model().get_ops():
        facts = op.get_rt_info()
        if str(facts["runtimePrecision"].astype(str)) in ("i8", "u8"):
            names = str(facts["originalLayersNames"].astype(str)).split(",")
            in_int8 += sum(work.get(name, 0) for name in names)
    return in_int8 / sum(work.values())


def _manifest(artifact: Path) -> dict[str, Any]:
    return dict(json.loads((artifact / "manifest.json").read_text(encoding="utf-8")))


def _not_run(network: str, grid: str) -> dict[str, Any]:
    return results_file.row(f"{network}-{grid}", f"{network}, {WHAT[grid]}", None)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/datasets/mtd"))
    parser.add_argument("--work", type=Path, default=Path("runs/quantization"))
    parser.add_argument("--quality", type=Path, default=Path("runs/quality"), help="work of bench-quality")
    for option, every in (("--networks", NETWORKS), ("--grids", GRIDS)):
        parser.add_argument(
            option, type=lambda text: text.split(","), default=list(every), help=f"some of {','.join(every)}"
        )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
