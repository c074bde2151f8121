"""The checks of the self-test, one after another, in the process that `selftest.selftest` starts.

integrity -> backend -> load -> golden vectors -> latency -> memory. The first that fails ends the chain; the
rest are `not run`. Camera and line outputs are rows too, so that nobody takes them for tested.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge import golden
from edge.artifact import Artifact
from edge.backend import find_backend
from edge.errors import ArtifactError, BackendError, BackendUnavailableError, EdgeError
from edge.inspector import Inspector, open_inspector
from firmware_bridge.selftest import ABSENT, FAIL, NOT_CONFIGURED, NOT_JUDGED, NOT_RUN, PASS, Check, SelfTest

WARM_UP = 3
MIN_RUNS = 5
MAX_RUNS = 200
MEASURE_S = 2.0
CHAIN = ("integrity", "backend", "load", "golden vectors", "latency", "memory")
_REINSTALL = "install the artifact again from its bundle (`edgeqc flash`); then suspect the storage"


class _Examination:
    """Collects rows while the chain runs."""

    def __init__(self, folder: Path, device: str | None, stand_in: bool) -> None:
        self.folder = folder
        self.device = device
        self.wants_stand_in = stand_in
        self.checks: list[Check] = []
        self.artifact: Artifact | None = None
        self.inspector: Inspector | None = None
        self.measured: dict[str, float] = {}

    @property
    def stand_in(self) -> bool:
        """True when this run does not touch the target's own device."""
        return self.wants_stand_in and self.artifact is not None and self.artifact.stand_in is not None

    def integrity(self) -> Check:
        try:
            self.artifact = Artifact.open(self.folder)
        except ArtifactError as error:
            return Check("integrity", FAIL, _line(error), _REINSTALL)
        size_bytes = sum(int(entry["bytes"]) for entry in self.artifact.manifest["files"])
        count = len(self.artifact.manifest["files"])
        return Check("integrity", PASS, f"{count} files, {size_bytes} bytes, all digests match")

    def backend(self) -> Check:
        assert self.artifact is not None
        name = self.artifact.backend
        if self.stand_in and self.artifact.stand_in is not None:
            name = str(self.artifact.stand_in["backend"])
        try:
            probe = find_backend(name).probe()
        except BackendUnavailableError as error:
            return Check("backend", ABSENT, _line(error), _advice(error))
        if not probe.usable:
            return Check("backend", ABSENT, f"{name}: {probe.reason}", probe.fix or "run `edgeqc doctor`")
        devices = ", ".join(probe.devices) or "no device listed"
        return Check("backend", PASS, f"{name}: {probe.sdk} {probe.version} ({devices})")

    def load(self) -> Check:
        began = time.perf_counter()
        try:
            self.inspector = open_inspector(self.folder, device=self.device, stand_in=self.stand_in)
        except BackendUnavailableError as error:
            return Check("load", ABSENT, _line(error), _advice(error))
        except EdgeError as error:
            return Check("load", FAIL, _line(error), _advice(error))
        self.measured["load_ms"] = (time.perf_counter() - began) * 1e3
        return Check("load", PASS, f"{self.measured['load_ms']:.0f} ms")

    def golden_vectors(self) -> Check:
        assert self.artifact is not None and self.inspector is not None
        facts = self.artifact.manifest["golden"]
        if facts is None:
            return Check(
                "golden vectors",
                FAIL,
                "the artifact has none, so nothing proves its answers",
                "export it again",
            )
        try:
            frames = golden.check(self.inspector, self.folder, facts)
        except EdgeError as error:
            return Check("golden vectors", FAIL, _line(error), _advice(error))
        flips = sum(not frame.verdict_equal for frame in frames)
        worst = max(frame.logit_difference for frame in frames)
        same_bytes = sum(frame.bytes_equal for frame in frames)
        required = golden.bytes_required(self.inspector, facts)
        self.measured.update(
            golden_frames=len(frames),
            golden_flips=flips,
            golden_logit_difference=worst,
            golden_bytes_equal=same_bytes,
        )
        found = (
            f"{len(frames) - flips} of {len(frames)} verdicts equal, logits within {worst:.3g} "
            f"(allowed {frames[0].tolerance:.3g}), {same_bytes} of {len(frames)} equal to the byte"
            f"{' (required here)' if required else ''}"
        )
        if any(not frame.input_equal for frame in frames):
            return Check(
                "golden vectors", FAIL, f"frames are prepared differently here; {found}",
                "export and device run different versions of edgeqc: install the same one on both",
            )  # fmt: skip
        if not all(frame.passed for frame in frames):
            return Check(
                "golden vectors",
                FAIL,
                found,
                "this device computes other answers: do not use it; run `edgeqc doctor`",
            )
        if required and same_bytes < len(frames):
            return Check(
                "golden vectors", FAIL, found,
                "same SDK and processor, other bytes: restart, test again, then suspect the camera's memory",
            )  # fmt: skip
        return Check("golden vectors", PASS, found)

    def latency(self) -> Check:
        assert self.artifact is not None and self.inspector is not None
        frame = _first_frame(self.artifact)
        try:
            times_ms = _latencies_ms(self.inspector, frame)
        except BackendError as error:
            return Check("latency", FAIL, _line(error), _advice(error))
        p50_ms, p95_ms = (float(np.percentile(times_ms, q)) for q in (50, 95))
        self.measured.update(latency_p50_ms=p50_ms, latency_p95_ms=p95_ms, latency_runs=len(times_ms))
        found = f"median {p50_ms:.2f} ms, 95th percentile {p95_ms:.2f} ms over {len(times_ms)} frames"
        advice = "cool the device, stop other programs and test again; `edgeqc bench` shows more"
        return self._judge(
            "latency", found, p95_ms, self.artifact.manifest.get("latency_budget_ms"), "ms", advice
        )

    def memory(self) -> Check:
        assert self.artifact is not None
        peak_bytes = peak_memory_bytes()
        if peak_bytes is None:
            return Check("memory", NOT_JUDGED, "this system does not tell")
        self.measured["memory_peak_bytes"] = peak_bytes
        found = f"peak {peak_bytes / 2**20:.0f} MiB, runtime and interpreter included"
        budget = self.artifact.manifest.get("memory_budget_bytes")
        advice = "stop other programs on the camera, or export a smaller model"
        return self._judge("memory", found, peak_bytes, budget, "bytes", advice)

    def _judge(self, name: str, found: str, value: float, budget: Any, unit: str, advice: str) -> Check:
        if budget is None:
            return Check(name, NOT_CONFIGURED, f"{found}; the artifact sets no budget")
        found = f"{found}; budget {budget} {unit}"
        if self.stand_in:
            return Check(name, NOT_JUDGED, f"{found}, which is the device's and not this stand-in's")
        return Check(
            name, PASS if value <= float(budget) else FAIL, found, "" if value <= float(budget) else advice
        )

    def run(self) -> SelfTest:
        steps: list[Callable[[], Check]] = [
            self.integrity, self.backend, self.load, self.golden_vectors, self.latency, self.memory
        ]  # fmt: skip
        for name, step in zip(CHAIN, steps):
            broken = any(check.state in (FAIL, ABSENT) for check in self.checks)
            # A budget that is missed says nothing about the next one.
            independent = name == "memory" and self.checks[-1].state != NOT_RUN
            self.checks.append(step() if not broken or independent else Check(name, NOT_RUN))
        for name in ("camera", "line outputs"):
            self.checks.append(Check(name, NOT_CONFIGURED, "not part of this test"))
        facts: dict[str, Any] = {}
        if self.artifact is not None:
            facts = {
                k: getattr(self.artifact, k) for k in ("name", "version", "target", "precision", "digest")
            }
        ran_on = None
        if self.inspector is not None:
            ran_on = asdict(self.inspector.session.ran_on)
            self.inspector.close()
        return SelfTest(str(self.folder), tuple(self.checks), facts, ran_on, self.stand_in, self.measured)


def examine(folder: Path, *, device: str | None = None, stand_in: bool = False) -> SelfTest:
    """Run all checks in this process."""
    return _Examination(folder, device, stand_in).run()


def _first_frame(artifact: Artifact) -> npt.NDArray[np.uint8]:
    assert artifact.manifest["golden"] is not None
    with np.load(
        artifact.path / str(artifact.manifest["golden"].get("file", "golden.npz")), allow_pickle=False
    ) as npz:
        frame: npt.NDArray[np.uint8] = npz["frame_000"]
        return frame


def _latencies_ms(inspector: Inspector, frame: npt.NDArray[np.uint8]) -> list[float]:
    for _ in range(WARM_UP):
        inspector.inspect(frame)
    times_ms: list[float] = []
    end = time.monotonic() + MEASURE_S
    while len(times_ms) < MIN_RUNS or (len(times_ms) < MAX_RUNS and time.monotonic() < end):
        times_ms.append(inspector.inspect(frame).timings.latency_ms)
    return times_ms


def peak_memory_bytes() -> int | None:
    """Largest resident size of this process so far, or None where /proc does not tell.

    VmHWM, not `ru_maxrss`: the kernel hands the latter on through exec, so it would be our parent's.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _line(error: EdgeError) -> str:
    """An error in one line."""
    parts = [error.what]
    parts += [
        f"{label} {value}"
        for label, value in (("wanted", error.wanted), ("got", error.got))
        if value is not None
    ]
    return "; ".join(parts).replace("\n", " ")


def _advice(error: EdgeError) -> str:
    return error.next_step or "run `edgeqc doctor`"


def main(arguments: Sequence[str]) -> int:
    """The child: one JSON order as argument, one JSON answer on standard output."""
    order = json.loads(arguments[0])
    # An SDK may print to standard output; there the answer must stand alone.
    answer = os.dup(1)
    os.dup2(2, 1)
    test = examine(Path(order["folder"]), device=order["device"], stand_in=order["stand_in"])
    with os.fdopen(answer, "w", encoding="utf-8") as stream:
        json.dump(asdict(test), stream)
    sys.stdout.flush()
    return 0
