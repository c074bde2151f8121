"""A backend for the bridge's tests: numpy alone; misbehaves as the manifest's field `behaviour` says."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge.artifact import Artifact
from edge.backend import Backend, Probe, RanOn, Session, TensorSpec


class BridgeRuntime(Backend):
    """Answers like `tiny.expected`, unless told otherwise."""

    name = "bridge-fake"

    def _probe(self) -> Probe:
        return Probe(True, "ready", "fake", "1", ("cpu",))

    def _load(self, artifact: Artifact, device: str | None) -> Session:
        if artifact.manifest["behaviour"] == "no device":
            raise self.unavailable("no such device", fix="plug it in")
        return BridgeSession(artifact.manifest["behaviour"], device or "cpu")


class BridgeAbsent(Backend):
    """A backend whose SDK is not there."""

    name = "bridge-absent"

    def _probe(self) -> Probe:
        raise ImportError("no such SDK")

    def _load(self, artifact: Artifact, device: str | None) -> Session:
        raise ImportError("no such SDK")


class BridgeSession(Session):
    """8 x 8 cells of 4 x 4 pixels."""

    inputs = (TensorSpec("input", (1, 1, 32, 32), "float32"),)
    outputs = (TensorSpec("defect", (1, 1), "float32"), TensorSpec("mask", (1, 1, 8, 8), "float32"))

    def __init__(self, behaviour: str, device: str) -> None:
        self.behaviour = behaviour
        self.ballast = np.empty(0, np.uint8)
        self.ran_on = RanOn(device, "fake", "1")

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        mask = 8 * feeds["input"].reshape(1, 1, 8, 4, 8, 4).mean(axis=(3, 5)) - 2
        defect = mask.max().reshape(1, 1)
        if self.behaviour == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self.behaviour == "hang":
            time.sleep(60)
        elif self.behaviour == "slow":
            time.sleep(0.02)
        elif self.behaviour == "raise":
            raise ZeroDivisionError("in the SDK")
        elif self.behaviour == "chatty":
            os.write(1, b"SDK banner on standard output\n")
        elif self.behaviour == "wrong":
            defect = -defect
        elif self.behaviour == "other bytes":
            mask = np.nextafter(mask, np.float32(9))
        elif self.behaviour == "fat":
            self.ballast = self.ballast if self.ballast.size else np.ones(40 << 20, np.uint8)
        return {"defect": defect, "mask": mask}
