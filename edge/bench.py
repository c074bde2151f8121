"""`edgeqc bench`: what one frame costs on this device, through the path that a camera frame takes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edge.artifact import GATE, GOLDEN, MANIFEST, Artifact
from edge.errors import InputError
from edge.images import read_image
from edge.inspector import Inspector, Timings, open_inspector
from edge.preprocess import UInt8Array
from edge.progress import progress
from edge.samples import read_samples

# As many photographs as stay in memory; measured in turn.
_MOST_PHOTOGRAPHS = 32
THERMAL = Path("/sys/class/thermal")


def measure(
    path: Path,
    *,
    frames: int = 200,
    warmup: int = 20,
    frame: tuple[int, int] | None = None,
    data: Path | None = None,
    backend: str | None = None,
    device: str | None = None,
    stand_in: bool = False,
) -> dict[str, Any]:
    """Load the artifact (or RUN) at `path` and time `frames` inspections.

    Args:
        warmup: inspections before the clock starts.
        frame: width and height of random frames; None takes the golden frames, else the model's own size.
        data: a data set folder whose photographs are inspected instead.

    Returns:
        JSON-able facts; times in milliseconds: `latency_ms` and its parts `preprocess_ms`, `inference_ms`,
        `postprocess_ms` (each p50, p90, p99, mean), `throughput_fps`, `load_ms`, `first_result_ms` (load and
        first frame, the SDK's import included at its first use), `rss_mib`, `peak_rss_mib`, `size_bytes`,
        `temperature_c` (hottest zone, null where the machine shows none), `ran_on`.
    """
    if frames < 1 or warmup < 0:
        raise InputError("nothing to measure", wanted="--frames >= 1, --warmup >= 0", got=(frames, warmup))
    began = time.perf_counter()
    with open_inspector(path, backend=backend, device=device, stand_in=stand_in) as inspector:
        load_s = time.perf_counter() - began
        clock_off = time.perf_counter()
        pictures, content = _pictures(path, inspector, frame, data)
        reading_s = time.perf_counter() - clock_off
        inspector.inspect(pictures[0])
        first_s = time.perf_counter() - began - reading_s
        for index in range(warmup):
            inspector.inspect(pictures[index % len(pictures)])
        timings: list[Timings] = []
        start = time.perf_counter()
        for index in progress(range(frames), "bench"):
            timings.append(inspector.inspect(pictures[index % len(pictures)]).timings)
        elapsed_s = time.perf_counter() - start
        ran_on = asdict(inspector.session.ran_on)
        name, digest = inspector.name, inspector.digest
        resident, peak = _memory_mib()
    height, width = pictures[0].shape[:2]
    return {
        "name": name,
        "digest": digest,
        **_facts(path),
        "frames": frames,
        "warmup": warmup,
        "frame": {"width": width, "height": height, "content": content},
        "latency_ms": _spread([t.latency_ms for t in timings]),
        "preprocess_ms": _spread([t.preprocess_ms for t in timings]),
        "inference_ms": _spread([t.inference_ms for t in timings]),
        "postprocess_ms": _spread([t.postprocess_ms for t in timings]),
        "throughput_fps": frames / elapsed_s,
        "load_ms": load_s * 1e3,
        "first_result_ms": first_s * 1e3,
        "rss_mib": resident,
        "peak_rss_mib": peak,
        "temperature_c": temperature_c(),
        "ran_on": ran_on,
    }


def table(facts: dict[str, Any]) -> str:
    """The measurement for people."""
    ran_on, frame = facts["ran_on"], facts["frame"]
    mark = "  (stand-in, not verified on device)" if ran_on["stand_in"] else ""
    lines = [
        f"{facts['name']} on {ran_on['device']}, {ran_on['sdk']} {ran_on['version']}{mark}",
        f"{facts['frames']} frames of {frame['width']} x {frame['height']} ({frame['content']})",
        "",
        f"{'ms':12}{'p50':>9}{'p90':>9}{'p99':>9}{'mean':>9}",
    ]
    for part in ("latency", "preprocess", "inference", "postprocess"):
        numbers = facts[f"{part}_ms"]
        lines.append(f"{part:12}" + "".join(f"{numbers[key]:9.3f}" for key in ("p50", "p90", "p99", "mean")))
    temperature = "not shown" if facts["temperature_c"] is None else f"{facts['temperature_c']:.0f} C"
    budget = facts.get("latency_budget_ms")
    lines += [
        "",
        f"{facts['throughput_fps']:.1f} frames/s, first result after {facts['first_result_ms']:.0f} ms",
        f"memory {facts['rss_mib']:.0f} MiB (peak {facts['peak_rss_mib']:.0f}), "
        f"model {facts['size_bytes'] / 2**20:.2f} MiB, temperature {temperature}",
    ]
    if budget is not None:
        kept = "kept" if facts["latency_ms"]["p99"] <= budget else "exceeded"
        lines.append(f"latency budget {budget:g} ms: {kept} at p99")
    return "\n".join(lines)


def temperature_c() -> float | None:
    """The hottest thermal zone in degrees Celsius, None where the machine shows none."""
    degrees = []
    for file in sorted(THERMAL.glob("thermal_zone*/temp")):
        try:
            degrees.append(int(file.read_text()) / 1000)
        except (OSError, ValueError):  # a zone that is switched off answers with an error
            continue
    return max(degrees) if degrees else None


def _pictures(
    path: Path, inspector: Inspector, frame: tuple[int, int] | None, data: Path | None
) -> tuple[list[UInt8Array], str]:
    if data is not None:
        images = [read_image(sample.image) for sample in read_samples(data)[:_MOST_PHOTOGRAPHS]]
        return images, f"{len(images)} photographs"
    golden = Path(path) / GOLDEN
    if frame is None and golden.is_file():
        with np.load(golden, allow_pickle=False) as members:
            images = [members[key] for key in sorted(members.files) if key.startswith("frame_")]
        if images:
            return images, "golden frames"
    width, height = frame or (inspector.input.width, inspector.input.height)
    shape = (height, width) if inspector.input.channels == 1 else (height, width, 3)
    return [np.random.default_rng(0).integers(0, 256, shape, np.uint8)], "random pixels"


def _spread(values_ms: Sequence[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(values_ms, (50, 90, 99)).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "mean": float(np.mean(values_ms))}


def _facts(path: Path) -> dict[str, Any]:
    """Target, precision, size and budget from the manifest; of a RUN its weights' size."""
    if not (path / MANIFEST).is_file():
        return {"size_bytes": sum(file.stat().st_size for file in path.glob("model*"))}
    manifest = Artifact.open(path, verify=False).manifest
    return {
        "target": manifest["target"],
        "precision": manifest["precision"],
        "size_bytes": sum(
            int(entry["bytes"]) for entry in manifest["files"] if entry["path"] not in (GATE, GOLDEN)
        ),
        "latency_budget_ms": manifest.get("latency_budget_ms"),
    }


def _memory_mib() -> tuple[float | None, float | None]:
    """Resident memory of this process now, and at most so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None, None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None, peak
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, peak
