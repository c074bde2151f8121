"""Which operations depart: each one judged on equal inputs, so that rounding before it does not count against it.

Two right programs drift apart: after sixty operations single values of one tensor are 30 steps from the other's,
because each operation may round by one step and the next ones carry that on. A difference between two tapped
tensors therefore names nothing. So the tensors that one runtime computed are handed to the operation of the other
file (`Replay`), and its answer is compared with what the first runtime made of the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edge.errors import InputError
from edge.images import read_image
from edge.preprocess import UInt8Array, frame_to_tiles
from edge.progress import progress
from edge.samples import Sample
from targets.layers.hidden import search
from targets.layers.layer import INPUT, Layer, Replay, Steps, apart
from targets.layers.program import OUTPUTS, Side, other_grid, program

# In steps of an operation's own tensor. On equal inputs right kernels were at most 1 step from each other (our three
# networks, sizes up to `base`, three runtimes). On average they are 0.01 apart, TFLite's ADD and MEAN up to
# 0.27; cutting off in place of rounding would be 0.5.
TOLERANCE_STEPS = 2.0
MEAN_TOLERANCE_STEPS = 0.4
MEAN_FEWEST = 64
# Of a whole program: how far the answers of two right programs lie apart, averaged over one tile's output. Taps moved
# the answer of right programs by up to 9 steps on 16 photographs, and a score on one of 200 by 33.
OUTPUT_STEPS = 12.0
# oneDNN, which OpenVINO and others are made of, reads it: the newest instructions that it may use.
INSTRUCTION_SET = "ONEDNN_MAX_CPU_ISA"


@dataclass
class Tally:
    """Differences of one tensor over all tiles, in steps.

    Attributes:
        share: of the values that differ by more than the tolerance.
    """

    tolerance: float
    max: float = 0.0
    total: float = field(default=0.0, repr=False)
    beyond: int = field(default=0, repr=False)
    count: int = 0

    def add(self, a: Steps, b: Steps) -> None:
        """Count the differences of two tensors of one shape."""
        away = apart(a, b)
        self.max = max(self.max, float(away.max(initial=0)))
        self.total += float(away.sum(dtype=np.float64))
        self.beyond += int((away > self.tolerance).sum())
        self.count += away.size

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def departs(self) -> bool:
        """Whether this is more than rounding."""
        systematic = self.count >= MEAN_FEWEST and self.mean > MEAN_TOLERANCE_STEPS
        return self.max > self.tolerance or systematic

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {"max": self.max, "mean": self.mean, "share": self.beyond / self.count if self.count else 0.0}


@dataclass
class Measured:
    """One layer: how far each side is from the replay on its own inputs, and how far the two sides drift apart.

    Attributes:
        fed: by side, whether the replay can be given its inputs as they are. Values on another file's steps lie
            beside the replay's grid and are rounded to it, which is no fault of the operation that reads them.
    """

    layer: Layer
    steps: tuple[float | None, float | None]
    errors: tuple[Tally, Tally]
    drift: Tally
    fed: tuple[bool, bool] = (True, True)

    @property
    def other_step(self) -> bool:
        """Whether the two files quantize the tensor with different steps."""
        one, other = self.steps
        return self.layer.quantized and one != other

    @property
    def off(self) -> tuple[bool, bool]:
        """Which side makes something else of its own inputs than the replay does."""
        exact = self.layer.name == INPUT  # nothing is rounded on the way to it
        one, other = (
            fed and (tally.departs or (exact and tally.max > 0)) for fed, tally in zip(self.fed, self.errors)
        )
        return one, other

    @property
    def departs(self) -> bool:
        return self.other_step or any(self.off)


def compare_layers(
    sides: tuple[Side, Side], samples: Sequence[Sample], tolerance: float = TOLERANCE_STEPS
) -> dict[str, Any]:
    """Compare two artifacts of one grid, operation by operation; what `--json` prints, see docs/parity.md.

    Args:
        sides: from `open_sides`.
        samples: photographs to run; each is framed into tiles as on the camera.
        tolerance: steps by which an operation may differ from its replay on equal inputs.

    Raises:
        InputError: the files have different operations, or neither can be replayed.
    """
    layers, steps, replay = _align(sides)
    tiles = _tiles(sides[0], samples)
    plain = [_answers(side, layers, steps[i], tiles) for i, side in enumerate(sides)]
    rows, tapped = _measure(sides, layers, steps, replay, tiles, tolerance)
    gap = _distance(plain[0], plain[1])
    noise = _distance(tapped[0], tapped[1])
    shifts = [_distance(before, after) for before, after in zip(plain, tapped)]
    departed = [_departure(row, sides) for row in rows if row.departs]
    moved = {side.name for side, shift in zip(sides, shifts) if max(shift.values()) > OUTPUT_STEPS}
    if max(gap.values()) <= OUTPUT_STEPS:
        mark_made_by_taps(departed, moved)
    hidden = []
    if not departed:
        limits = {name: max(OUTPUT_STEPS, 2 * noise[name]) for name in OUTPUTS}
        for i, side in enumerate(sides):
            if ships_a_fault(shifts[i], gap, limits):
                found = search(
                    side, layers, steps[i], tiles, (plain[i], tapped[i]), limits,
                    {row.layer.name: row.drift.mean for row in rows},
                )  # fmt: skip
                hidden.append({**found, "artifact": side.name, "shift": shifts[i]})
    real = [entry for entry in departed if not entry["only_tapped"]]
    return {
        "n": len(samples),
        "tiles": len(tiles),
        "tolerance_steps": tolerance,
        "artifacts": [side.facts() for side in sides],
        "instruction_set": os.environ.get(INSTRUCTION_SET),
        "replay": replay.how,
        "outputs": [
            {
                "name": name,
                "apart": gap[name],
                "apart_tapped": noise[name],
                "moved_by_taps": [shift[name] for shift in shifts],
            }
            for name in OUTPUTS
        ],
        "layers": [_row_facts(row) for row in rows],
        "departures": departed,
        "first": real[0] if real else None,
        "hidden": hidden,
        "passed": not real and not hidden,
    }


def _align(
    sides: tuple[Side, Side],
) -> tuple[Sequence[Layer], tuple[dict[str, float], dict[str, float]], Replay]:
    """The grid's layers, the step of each in both files, and a replay of one of them."""
    for side in sorted(sides, key=lambda side: side.backend == "litert"):  # ONNX is the more readable truth
        replay = side.file.replay() if side.file.layers else None
        if replay is not None:
            layers = side.file.layers
            break
    else:
        raise InputError(
            "neither artifact can be run operation by operation, so none can judge the other",
            wanted="one artifact of target onnx, tensorrt or edgetpu",
            got=" and ".join(side.artifact.target for side in sides),
            next_step="export the RUN for onnx too and compare with that",
        )
    one, other = sides
    known = {layer.name for layer in layers}
    steps = one.file.steps(layers), other.file.steps(layers)
    for side, found in zip(sides, steps):
        missing = [layer.name for layer in layers if layer.name not in found]
        extra = [layer.name for layer in side.file.layers if layer.name not in known]
        if missing or extra:
            first, second = (one, other) if side is other else (other, one)
            got = f"no operation {missing[0]}" if missing else f"an operation {extra[0]}"
            raise other_grid(first.name, second.name, f"{len(layers)} operations", got)
    return layers, steps, replay


def _tiles(side: Side, samples: Sequence[Sample]) -> list[UInt8Array]:
    found: list[UInt8Array] = []
    for sample in samples:
        tiles, _ = frame_to_tiles(read_image(sample.image), side.artifact.input, side.artifact.framing)
        found.extend(tiles)
    return found


Answers = list[dict[str, Steps]]


def _answers(
    side: Side, layers: Sequence[Layer], steps: dict[str, float], tiles: Sequence[UInt8Array]
) -> Answers:
    """The outputs of the shipped program, without any tap."""
    with program(side, layers, steps) as plain:
        return [plain.run(tile) for tile in tiles]


def _measure(
    sides: tuple[Side, Side],
    layers: Sequence[Layer],
    steps: tuple[dict[str, float], dict[str, float]],
    replay: Replay,
    tiles: Sequence[UInt8Array],
    tolerance: float,
) -> tuple[list[Measured], list[Answers]]:
    """Run both with every tensor tapped; the rows, and both programs' outputs."""
    rows = [
        Measured(
            layer,
            (steps[0].get(layer.name), steps[1].get(layer.name)),
            (Tally(tolerance), Tally(tolerance)),
            Tally(tolerance),
            (_same_grid(layer, layers, steps[0]), _same_grid(layer, layers, steps[1])),
        )
        for layer in layers
    ]
    answers: list[Answers] = [[], []]
    with ExitStack() as stack:
        programs = [
            stack.enter_context(program(side, layers, found, layers)) for side, found in zip(sides, steps)
        ]
        for tile in progress(tiles, "operation by operation"):
            values = [one.run(tile) for one in programs]
            for layer in layers:
                one, other = (found[layer.name].shape for found in values)
                if one != other:
                    raise other_grid(sides[0].name, sides[1].name, f"{layer.label} {one}", f"{other}")
            # The one tensor that no operation makes: int8 = p - 128, without rounding.
            pixels = tile.astype(np.float32).transpose(2, 0, 1)[None] - 128
            for i, found in enumerate(values):
                expected = {INPUT: pixels, **replay.run(found)}
                for row in rows:
                    row.errors[i].add(found[row.layer.name], expected[row.layer.name])
                answers[i].append({name: found[name] for name in OUTPUTS})
            for row in rows:
                row.drift.add(values[0][row.layer.name], values[1][row.layer.name])
    return rows, answers


def _same_grid(layer: Layer, layers: Sequence[Layer], steps: Mapping[str, float]) -> bool:
    """Whether a file, whose `steps` these are, quantizes what an operation reads as the replay's does."""
    return all(
        not source.quantized or steps[source.name] == source.step
        for source in layers
        if source.name in layer.inputs
    )


def _distance(a: Answers, b: Answers) -> dict[str, float]:
    """By output: the largest over all tiles of the mean distance, in steps."""
    return {
        name: max(float(apart(one[name], other[name]).mean()) for one, other in zip(a, b)) for name in OUTPUTS
    }


def _departure(row: Measured, sides: tuple[Side, Side]) -> dict[str, Any]:
    """What the result says of an operation that departs."""
    return {
        "name": row.layer.name,
        "label": row.layer.label,
        "operation": row.layer.operation,
        "inputs": list(row.layer.inputs),
        "artifacts": [side.name for side, off in zip(sides, row.off) if off],
        "steps": list(row.steps) if row.other_step else None,
        "error": [tally.facts() for tally in row.errors],
        "only_tapped": False,
    }


def ships_a_fault(shift: Mapping[str, float], gap: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether a program that is right when tapped is not as it ships: far from both its twin and the other program.

    Taps alone move the answers of right programs nearly as far as the limits, but not away from each other.

    Args:
        shift, gap: by output, the distance to the tapped twin and to the other program as that ships.
    """
    return any(min(shift[name], gap[name]) > limits[name] for name in OUTPUTS)


def mark_made_by_taps(departed: Sequence[dict[str, Any]], moved: Container[str]) -> None:
    """Of two programs that agree as they ship, the tapped twin of one departs: that twin is not what ships.

    Args:
        departed: entries as `_departure` writes them.
        moved: the artifacts whose answers taps move. One whose answers they do not move is what it was before.
    """
    for entry in departed:
        culprits = entry["artifacts"]
        entry["only_tapped"] = entry["steps"] is None and all(name in moved for name in culprits)


def _row_facts(row: Measured) -> dict[str, Any]:
    return {
        **{key: value for key, value in asdict(row.layer).items() if key != "inputs"},
        "inputs": list(row.layer.inputs),
        "error": [tally.facts() for tally in row.errors],
        "drift": row.drift.facts(),
        "departs": row.departs,
    }
