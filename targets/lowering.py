"""What every target is given, and what it hands back.

A target is a module of this package: `NAME`, `BACKEND` (the runtime that loads its files), `PRECISIONS` (best
first) and `lower(network, precision, folder, profile)`, which writes files into `folder` and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.preprocess import InputSpec, encode
from quantize.recipe import GridRecipe
from targets.errors import TargetError
from targets.profile import Profile

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from quantize.grid import CalibratedGrid
    from quantize.mixed import MixedPlan


# Tiles that the mixed-precision plan is made on, of those that set the ranges: it costs seconds for each.
PLANNING_TILES = 12
ON_GRID = ("int8", "mixed")


@dataclass
class Network:
    """A trained network on its way to a target. What several targets need is made once, when asked for.

    Attributes:
        model: as trained, batch norm not folded.
        input: size and channels; layout and encoding are the target's choice.
        tiles: uint8 [T, height, width, channels], the raw pixels that set the ranges of the grid.
        name: of the RUN.
        facts: strings for each format's own metadata, e.g. labels and threshold.
        recipe: how it is put on the grid.
        tuned: `grid.safetensors` of a RUN that was tuned (`edgeqc train --qat`): its grid is taken.
    """

    model: nn.Module
    input: InputSpec
    tiles: npt.NDArray[np.uint8]
    name: str = "edgeqc"
    facts: Mapping[str, str] = field(default_factory=dict)
    recipe: GridRecipe = field(default_factory=GridRecipe)
    tuned: Path | None = None
    made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.input.channels, self.input.height, self.input.width

    @cached_property
    def folded(self) -> nn.Module:
        """Float network in eval mode, batch norm folded."""
        from quantize.models.batch_norm import fold_batch_norm

        return fold_batch_norm(self.model, self.shape)

    @cached_property
    def program(self) -> fx.GraphModule:
        """The graph of `folded`."""
        from quantize.capture import capture

        return capture(self.folded, self.shape)

    @cached_property
    def mask_stride(self) -> int:
        """Input pixels on the side of one cell of the mask."""
        import torch

        with torch.no_grad():
            _, mask = self.folded(torch.zeros(1, *self.shape))
        return self.input.width // int(mask.shape[-1])

    @cached_property
    def grid(self) -> CalibratedGrid:
        """The network on the integer grid.

        Raises:
            CalibrationError, QuantizeError: see `quantize.grid.calibrate`.
        """
        from quantize.quiet import quiet

        with quiet():
            if self.tuned is None:
                from quantize.grid_cache import cached_grid

                graph = self.program.graph
                return cached_grid(self.folded, graph, self.tiles, self.shape, self.recipe, self._calibrated)
            from quantize.tuned_grid import load_grid

            return load_grid(self.tuned, self.folded, self.shape)

    @cached_property
    def mixed_plan(self) -> MixedPlan:
        """The layers that stay in float at precision `mixed`, planned on tiles that set the ranges."""
        import torch

        from quantize.mixed import plan_mixed
        from quantize.sensitivity import measure

        # Good parts come first, defects last: what is looked at has to be of both.
        tiles = self.tiles[:: -(-len(self.tiles) // PLANNING_TILES)]
        images = [torch.from_numpy(encode(tile, self._spec)) for tile in tiles]
        grid = self.grid if self.tuned is not None else self._calibrated()
        return plan_mixed(measure(grid, images).rows)

    @cached_property
    def mixed(self) -> CalibratedGrid:
        """The network as trained on the integer grid, but for the layers of `mixed_plan`.

        Of a RUN that was tuned it takes the plan alone: what was tuned made up for int8 in layers that are float here.
        """
        return self._calibrated(self.mixed_plan.nodes)

    def on_grid(self, precision: str) -> CalibratedGrid:
        """The quantized graph of a precision in `ON_GRID`."""
        return self.mixed if precision == "mixed" else self.grid

    def _calibrated(self, leave: Collection[str] = ()) -> CalibratedGrid:
        from quantize.quiet import quiet

        with quiet():
            from quantize.grid import calibrate

            return calibrate(
                self.folded,
                self.batches(),
                input_shape=self.shape,
                recipe=self.recipe,
                leave=leave,
            )

    @property
    def _spec(self) -> InputSpec:
        return replace(self.input, layout="nchw", file_dtype="float32", encoding="centered_float")

    def batches(self) -> Iterator[Tensor]:
        """The tiles one by one as the network takes them, float32 [1, C, H, W] in (p - 128) / 128."""
        import torch

        for tile in self.tiles:
            yield torch.from_numpy(encode(tile, self._spec))


@dataclass(frozen=True)
class Lowered:
    """What `lower` wrote, in the words of the manifest.

    Attributes:
        model: file name that the backend loads.
        input: what this file takes.
        outputs: `defect` and `mask`: the file's tensor names, and the mask's stride in pixels.
        stand_in: backend and device that may replace an absent accelerator on the host, or None.
        facts: what the exporter did and checked.
        objections: why the device would not run all of it, one sentence each; empty when it would.
        output_step: the grid's step of `defect` in logits; None for float.
    """

    model: str
    input: InputSpec
    outputs: Mapping[str, Mapping[str, Any]]
    stand_in: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    objections: tuple[str, ...] = ()
    output_step: float | None = None

    def manifest(self) -> dict[str, Any]:
        """The manifest fields that the target decides."""
        return {
            "model": self.model,
            "input": asdict(self.input),
            "outputs": {key: dict(value) for key, value in self.outputs.items()},
            "stand_in": dict(self.stand_in) if self.stand_in else None,
            "lowering": dict(self.facts),
        }


class Target(Protocol):
    """The shape of a target module."""

    NAME: str
    BACKEND: str
    PRECISIONS: tuple[str, ...]

    def lower(self, network: Network, precision: str, folder: Path, profile: Profile) -> Lowered:
        """Write the network's files for one precision."""


def outputs(network: Network) -> dict[str, dict[str, Any]]:
    """The manifest's `outputs`: every target keeps the names."""
    return {"defect": {"name": "defect"}, "mask": {"name": "mask", "stride": network.mask_stride}}


def origin(node: fx.Node) -> str:
    """The grid's name of an operation with the module that made it before it: `sample.logit/conv2d_57`.

    Every file calls the operation so: its last part is what `edgeqc parity --layers` finds it by.
    """
    from quantize.layers import module_path

    path = module_path(node)
    return f"{path}/{node.name}" if path else str(node.name)


def describe(node: fx.Node) -> str:
    """An operation of the network for an error message: what it is called with, its module and its source line."""
    from quantize.capture import place

    return f"{node.format_node()}, {place(node)}"


def check_precision(precision: str, target: Any) -> None:
    """Refuse a precision that the target does not write.

    Raises:
        TargetError: naming those that it does.
    """
    if precision not in target.PRECISIONS:
        raise TargetError(
            f"target {target.NAME} has no precision {precision!r}",
            wanted=" or ".join(target.PRECISIONS),
            got=precision,
        )


def output_step(network: Network, precision: str) -> float | None:
    """The grid's step of `defect` in logits, by which answers may differ between processors; None for float."""
    return network.grid.output_scales()[0] if precision in ON_GRID else None


def mixed_facts(network: Network, precision: str) -> dict[str, Any]:
    """What the manifest says of precision `mixed`; nothing for the others."""
    if precision != "mixed":
        return {}
    plan = network.mixed_plan
    return {"float_layers": list(plan.layers), "int8_mac_share": round(plan.int8_mac_share, 4)}


def needed_bytes(network: Network, precision: str, file_bytes: int) -> int:
    """Weights plus the largest pair of neighbouring activations: the least that any runtime has to hold."""
    # The layers that `mixed` leaves in float are mostly the first ones, with the largest tensors.
    width = {"int8": 1, "nncf": 1, "mixed": 4, "fp16": 2, "fp32": 4}[precision]
    return file_bytes + width * _largest_activations(network, precision)


def _largest_activations(network: Network, precision: str) -> int:
    """Elements of the largest input and output of one convolution together."""
    from quantize.operations import CONVOLUTIONS

    graph = network.on_grid(precision).prepared if precision in ON_GRID else network.program

    def elements(node: fx.Node) -> int:
        while "val" not in node.meta:  # observers were put in after the shapes were known
            node = node.all_input_nodes[0]
        return int(node.meta["val"].numel())

    return max(
        elements(node) + elements(node.all_input_nodes[0])
        for node in graph.graph.nodes
        if node.target in CONVOLUTIONS
    )
