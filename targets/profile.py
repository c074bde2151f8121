"""Device profiles: what a device has, as data (`targets/profiles/*.toml`), and the exporter obeys it.

```toml
device = "Jetson Orin Nano"          # for people
target = "tensorrt"
sdk = "TensorRT 10.3 (JetPack 6.2)"
max_onnx_opset = 20                  # 0: no ONNX goes to the device
python = "3.10"                      # of the runtime on the device
memory_bytes = 8_589_934_592         # what the network may take of it
precisions = ["int8", "mixed", "fp16", "fp32"]  # tried in this order; the first that passes the gate wins
p50_ms = {int8 = 6.1, fp16 = 9.8}     # optional: of `edgeqc bench` on the device; the fastest is tried first then
int8_saturates = true                # optional: adds products in int16 (x86-64 without VNNI); weights take 7 bits there
default = true                       # the profile that the target takes when none is named
run_device = "cuda:0"                # optional: the backend's device
latency_budget_ms = 20.0             # optional: the self-test fails above it
notes = "..."                        # optional
```
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge.errors import InputError
from quantize.recipe import NARROW_WEIGHT_LEVELS, GridRecipe
from targets.errors import TargetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "profiles"
OLDEST_PYTHON = (3, 9)


@dataclass(frozen=True)
class Profile:
    """One device.

    Attributes:
        name: of the file, without suffix.
        title: the device's name for people.
        device: what the backend opens (`edgetpu:0`), or None for the backend's default.
        memory_bytes: what the network may take on the device, None: not limited.
        order: precisions that the device runs, as somebody believes, fastest first.
        int8_saturates: the processor adds products of two int8 in int16, see `quantize.recipe.NARROW_WEIGHT_LEVELS`.
        p50_ms: by precision, the median latency that `edgeqc bench` measured on the device.
    """

    name: str
    title: str
    target: str
    sdk: str
    max_onnx_opset: int
    python: str
    memory_bytes: int | None
    order: tuple[str, ...]
    default: bool = False
    device: str | None = None
    latency_budget_ms: float | None = None
    int8_saturates: bool = False
    p50_ms: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""

    def precisions(self, target: Any) -> tuple[str, ...]:
        """Precisions to try, in order: this device's, as far as `target` can write them.

        Those that were measured there come by what was measured, so int8 is not tried first for being int8; those that
        were not come after them, as the profile has them.
        """
        known = [precision for precision in self.order if precision in target.PRECISIONS]
        return tuple(sorted(known, key=lambda precision: self.p50_ms.get(precision, math.inf)))

    def is_measured(self, precisions: Collection[str]) -> bool:
        """Whether the order of `precisions` was measured on the device; of a single one there is no order."""
        return len(precisions) < 2 or all(precision in self.p50_ms for precision in precisions)

    def grid(self, recipe: GridRecipe) -> GridRecipe:
        """The recipe as this device needs it."""
        return replace(recipe, weight_levels=NARROW_WEIGHT_LEVELS) if self.int8_saturates else recipe

    def facts(self) -> dict[str, Any]:
        """What the manifest records."""
        return {
            "name": self.name,
            "device": self.title,
            "sdk": self.sdk,
            "max_onnx_opset": self.max_onnx_opset,
            "python": self.python,
            "memory_bytes": self.memory_bytes,
            "int8_saturates": self.int8_saturates,
        }

    def onnx_opset(self, oldest: int, newest: int) -> int:
        """The newest opset that both the exporter and the device know.

        Raises:
            TargetError: the device's highest is older than `oldest`, the oldest that we write.
        """
        if self.max_onnx_opset < oldest:
            raise TargetError(
                f"{self.title} ({self.sdk}) reads no ONNX that this exporter writes",
                wanted=f"opset {oldest} or later",
                got=f"at most opset {self.max_onnx_opset} in profile {self.name}",
                next_step="update the SDK on the device and its profile",
            )
        return min(self.max_onnx_opset, newest)

    def refuse_larger(self, needed_bytes: int) -> None:
        """Check what the network takes against the device's memory.

        Raises:
            TargetError: it is more.
        """
        if self.memory_bytes is not None and needed_bytes > self.memory_bytes:
            raise TargetError(
                f"the network does not fit into the memory that {self.title} has for it",
                wanted=f"at most {self.memory_bytes / 2**20:.1f} MiB",
                got=f"{needed_bytes / 2**20:.1f} MiB of weights and activations",
                next_step="train a smaller size (--size nano) or a smaller input",
            )


def names(target: str | None = None) -> list[str]:
    """Profiles that come with the package, all or those of one target."""
    found = [_read(file) for file in sorted(FOLDER.glob("*.toml"))]
    return [profile.name for profile in found if target in (None, profile.target)]


def load_profile(name: str | None, target: str) -> Profile:
    """Read a profile.

    Args:
        name: a profile of the package, the path of a TOML file, or None for the target's default.

    Raises:
        InputError: no such profile, one of another target, or an unusable file.
    """
    if name is None:
        defaults = [p for p in map(_read, sorted(FOLDER.glob("*.toml"))) if p.target == target and p.default]
        if len(defaults) != 1:
            raise InputError(
                f"target {target} has no default profile", wanted="--profile", got=", ".join(names(target))
            )
        return defaults[0]
    file = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not file.is_file():
        raise InputError(
            f"there is no device profile {name!r}",
            wanted=", ".join(names(target)) + ", or the path of a .toml file",
            got=name,
        )
    profile = _read(file)
    if profile.target != target:
        raise InputError(
            f"profile {profile.name} is not for target {target}", wanted=target, got=profile.target
        )
    return profile


def _read(file: Path) -> Profile:
    try:
        facts = tomllib.loads(file.read_text(encoding="utf-8"))
        profile = Profile(
            name=file.stem,
            title=str(facts.pop("device")),
            target=str(facts.pop("target")),
            sdk=str(facts.pop("sdk")),
            max_onnx_opset=int(facts.pop("max_onnx_opset")),
            python=str(facts.pop("python")),
            memory_bytes=int(facts.pop("memory_bytes", 0)) or None,
            order=tuple(facts.pop("precisions")),
            default=bool(facts.pop("default", False)),
            device=facts.pop("run_device", None),
            latency_budget_ms=facts.pop("latency_budget_ms", None),
            p50_ms=_latencies(facts.pop("p50_ms", {})),
            int8_saturates=bool(facts.pop("int8_saturates", False)),
            notes=str(facts.pop("notes", "")),
        )
        version = tuple(int(part) for part in profile.python.split("."))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(f"{file} is no usable device profile", got=f"{type(exc).__name__}: {exc}") from exc
    if strange := sorted(set(profile.p50_ms) - set(profile.order)):
        raise InputError(
            f"{file} has latencies of precisions that it does not try",
            wanted=", ".join(profile.order),
            got=", ".join(strange),
        )
    if facts:
        raise InputError(f"{file} has fields that no profile has", got=", ".join(sorted(facts)))
    if version < OLDEST_PYTHON:
        raise InputError(
            f"the runtime does not run on {profile.title}",
            wanted=f"Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or later",
            got=f"Python {profile.python} in {file.name}",
        )
    return profile


def _latencies(table: Mapping[str, Any]) -> dict[str, float]:
    found = {str(precision): float(value) for precision, value in table.items()}
    if not all(0 < value < math.inf for value in found.values()):
        raise ValueError(f"a latency in ms is above 0, got {found}")
    return found
