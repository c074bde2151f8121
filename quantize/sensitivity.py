"""What quantizing each layer alone does to verdicts and masks: the layers to spend float on, or to retrain for.

A layer's signal-to-noise ratio says how well its own numbers are kept, not whether anybody behind it minds. So each
layer is quantized alone, its weights and the tensor that it writes, together and one by one, everything else runs in
full precision, and what changes is measured where it counts: at the two outputs. Weights are rounded for this as the
grid rounds them, but for inputs in full precision: what they make good on the grid of the layers before them is not
their own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.observer import ObserverBase, PerChannelMinMaxObserver

from edge.progress import progress
from quantize.errors import CalibrationError
from quantize.grid import CalibratedGrid
from quantize.layers import Layer, find_layers
from quantize.operations import CONVOLUTIONS, OUT_OF_PLACE, written
from quantize.ranges import LEVELS
from quantize.rounding import solve


@dataclass(frozen=True)
class Change:
    """What quantizing something did to the outputs.

    Attributes:
        defect_rms, mask_rms: root mean square change of the logits.
        flips: photographs whose verdict changed.
        mask_agreement: intersection over union of the masks' cells with those of full precision, summed over the
            photographs that full precision calls defective; NaN where there is none.
    """

    defect_rms: float
    mask_rms: float
    flips: int
    mask_agreement: float


@dataclass(frozen=True)
class Sensitivity:
    """One layer, quantized alone.

    Attributes:
        layer: which.
        mac_share: its part of the network's multiply-accumulates, 0..1.
        whole: its weights and its output on the grid.
        weights, activation: one of the two; a layer without weights changes nothing by them.
        sqnr_db: power of its own output over that of the change, with both on the grid; infinite without a change.
        damage: its part of what all layers do, each alone, 0..1: the mean of its shares of the mean square changes
            of the defect logit and of the mask logits. Noise of different layers adds up in mean squares.
        weights_damage, activation_damage: of the same whole, by one of the two.
    """

    layer: Layer
    mac_share: float
    whole: Change
    weights: Change
    activation: Change
    sqnr_db: float
    damage: float
    weights_damage: float
    activation_damage: float


@dataclass(frozen=True)
class Sensitivities:
    """All layers of a network, the most damaging first.

    Attributes:
        together: all layers on the grid at once.
        count, positives: photographs measured, and how many of them full precision calls defective.
    """

    rows: tuple[Sensitivity, ...]
    together: Change
    count: int
    positives: int


def measure(
    grid: CalibratedGrid, images: Sequence[Tensor], *, threshold: float = 0.0, mask_threshold: float = 0.0
) -> Sensitivities:
    """Quantize each layer alone.

    Args:
        grid: of the whole network, nothing left in float.
        images: one for each photograph, float32 [tiles, C, H, W] in (p - 128) / 128; none that set the grid's ranges,
            or the ranges look better than they are.
        threshold, mask_threshold: logits at which a photograph is defective (by its highest tile), and a mask's cell.

    Raises:
        CalibrationError: no images.
    """
    if not images:
        raise CalibrationError("there are no images to measure layers on", wanted="at least one")
    graph = _Graph(grid)
    together = _Sums(threshold, mask_threshold)
    parts: dict[tuple[str, str], _Sums] = defaultdict(lambda: _Sums(threshold, mask_threshold))
    power = {layer.node: [0.0, 0.0] for layer in graph.layers}
    with torch.no_grad():
        for photograph in progress(images, "quantizing each layer alone"):
            full = [graph.run(tile) for tile in photograph.split(1)]
            wanted = [graph.answers(tile) for tile in full]
            now = [graph.change(tile, graph.rounded, graph.tensors) for tile in full]
            together.add(wanted, [graph.answers(*pair) for pair in zip(full, now)])
            for layer in graph.layers:
                for part, weights, outputs in graph.variants(layer):
                    now = [graph.change(tile, weights, outputs) for tile in full]
                    parts[layer.node, part].add(wanted, [graph.answers(*pair) for pair in zip(full, now)])
                tensor = graph.tensors[layer.node]  # of the last variant, the whole layer
                for before, after in zip(full, now):
                    power[layer.node][0] += float(before[tensor].square().sum())
                    power[layer.node][1] += float((after[tensor] - before[tensor]).square().sum())
    return _ranked(graph.layers, parts, power, together)


class _Graph:
    """A calibrated graph that runs in full precision, and again from where something is quantized."""

    def __init__(self, grid: CalibratedGrid) -> None:
        prepared = grid.prepared
        self.nodes = list(prepared.graph.nodes)
        self.layers = find_layers(prepared)
        self.trained = grid.trained
        by_name = {node.name: node for node in self.nodes}
        # The observer's answer is what the layer writes once it is on the grid.
        self.tensors: dict[str, fx.Node] = {}
        self.writers: dict[fx.Node, tuple[str, float, int]] = {}
        # Of all convolutions, as they are on the grid; of each alone, by its node.
        self.rounded: dict[fx.Node, Tensor] = {}
        self.alone: dict[str, dict[fx.Node, Tensor]] = {}
        for layer in self.layers:
            node = by_name[layer.node]
            for reader in written(node).users:
                observer = prepared.get_submodule(str(reader.target)) if reader.op == "call_module" else None
                if isinstance(observer, ObserverBase):
                    self.tensors[layer.node] = reader
                    scale, zero_point = observer.calculate_qparams()  # type: ignore[no-untyped-call]
                    self.writers[reader] = layer.node, float(scale), int(zero_point)
            if node.target in CONVOLUTIONS:
                self._weights(grid, node)

    def _weights(self, grid: CalibratedGrid, node: fx.Node) -> None:
        """Note the weights of a convolution, and its bias, on the grid."""
        parameters = dict(grid.prepared.named_parameters()) | dict(grid.prepared.named_buffers())
        observed, *biases = node.all_input_nodes[1:]
        (weight,) = observed.all_input_nodes
        observer = grid.prepared.get_submodule(str(observed.target))
        assert isinstance(observer, PerChannelMinMaxObserver)
        scale, zero_point = observer.calculate_qparams()
        ours = {bias: parameters[str(bias.target)].detach() for bias in biases}
        ours[weight] = torch.fake_quantize_per_channel_affine(
            parameters[str(weight.target)].detach(), scale, zero_point.int(), 0, -LEVELS, LEVELS
        )
        self.rounded |= ours
        self.alone[node.name] = ours
        if node.name in grid.undisturbed:
            moments = grid.undisturbed[node.name]
            trained = grid.trained[str(weight.target)]
            shape = (len(moments.grid), len(trained) // len(moments.grid), -1)
            bias = grid.trained[str(biases[0].target)] if biases else trained.new_zeros(len(trained))
            rounded, shifted, _ = solve(
                trained.reshape(shape), bias.reshape(shape[:2]), moments, None, grid.weight_levels
            )
            self.alone[node.name] = {weight: rounded.reshape(trained.shape)} | dict.fromkeys(
                biases, shifted.reshape(-1)
            )

    def variants(self, layer: Layer) -> Iterator[tuple[str, dict[fx.Node, Tensor], tuple[str, ...]]]:
        """What of a layer is put on the grid: a name, weights, and whose outputs. The whole layer comes last."""
        weights = self.alone.get(layer.node, {})
        yield "activation", {}, (layer.node,)
        if weights:
            yield "weights", weights, ()
            yield "whole", weights, (layer.node,)

    def run(self, tile: Tensor) -> dict[fx.Node, Any]:
        """Every tensor in full precision, for `tile` [1, C, H, W]."""
        full: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if node.op == "placeholder":
                full[node] = tile
            elif node.op == "get_attr":
                full[node] = self.trained[str(node.target)]
            elif node.op == "call_module" and node.users:
                full[node] = full[node.all_input_nodes[0]]
            elif node.op == "call_function":
                full[node] = _call(node, full)
        return full

    def change(
        self, full: dict[fx.Node, Any], weights: dict[fx.Node, Tensor], outputs: Collection[str]
    ) -> dict[fx.Node, Any]:
        """The tensors that are different with these `weights`, and with the `outputs` of these layers on the grid."""
        now: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if node in weights:
                now[node] = weights[node]
            elif node in self.writers and self.writers[node][0] in outputs:
                (tensor,) = node.all_input_nodes
                now[node] = torch.fake_quantize_per_tensor_affine(
                    now.get(tensor, full[tensor]), *self.writers[node][1:], -LEVELS - 1, LEVELS
                )
            elif any(before in now for before in node.all_input_nodes):
                if node.op == "call_module":
                    now[node] = now[node.all_input_nodes[0]]
                elif node.op == "call_function":
                    now[node] = _call(node, full, now)
        return now

    def answers(
        self, full: dict[fx.Node, Any], now: dict[fx.Node, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Defect and mask logits."""
        defect, mask = self.nodes[-1].args[0]
        found = full | (now or {})
        return found[defect], found[mask]


def _call(node: fx.Node, full: dict[fx.Node, Any], now: dict[fx.Node, Any] | None = None) -> Any:
    def value(source: fx.Node) -> Any:
        return now[source] if now is not None and source in now else full[source]

    target: Any = OUT_OF_PLACE.get(node.target, node.target)
    return target(*fx.node.map_arg(node.args, value), **fx.node.map_arg(node.kwargs, value))


@dataclass
class _Sums:
    """Sums over photographs, for one `Change`."""

    threshold: float
    mask_threshold: float
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    counts: list[int] = field(default_factory=lambda: [0, 0])
    photographs: int = 0
    flips: int = 0
    positives: int = 0
    both: int = 0
    either: int = 0

    def add(self, wanted: Sequence[tuple[Tensor, Tensor]], found: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take in the answers of one photograph's tiles."""
        for before, after in zip(wanted, found):
            for index in (0, 1):
                self.squares[index] += float((after[index] - before[index]).square().sum())
                self.counts[index] += before[index].numel()
        was, now = (
            max(float(defect.max()) for defect, _ in tiles) >= self.threshold for tiles in (wanted, found)
        )
        self.photographs += 1
        self.flips += was != now
        if was:
            self.positives += 1
            for (_, mask), (_, changed) in zip(wanted, found):
                a, b = mask >= self.mask_threshold, changed >= self.mask_threshold
                self.both += int((a & b).sum())
                self.either += int((a | b).sum())

    def mean_square(self, index: int) -> float:
        return self.squares[index] / self.counts[index] if self.counts[index] else 0.0

    def change(self, positives: int) -> Change:
        agreement = self.both / self.either if self.either else 1.0
        defect, mask = (math.sqrt(self.mean_square(index)) for index in (0, 1))
        return Change(defect, mask, self.flips, agreement if positives else math.nan)


def _whole(parts: Mapping[tuple[str, str], _Sums], layer: Layer) -> _Sums:
    """A layer without weights is all in its output."""
    return parts[layer.node, "whole" if (layer.node, "whole") in parts else "activation"]


def _ranked(
    layers: Sequence[Layer],
    parts: Mapping[tuple[str, str], _Sums],
    power: dict[str, list[float]],
    together: _Sums,
) -> Sensitivities:
    macs = sum(layer.macs for layer in layers) or 1
    totals = [sum(_whole(parts, layer).mean_square(index) for layer in layers) for index in (0, 1)]

    def damage(sums: _Sums) -> float:
        return sum(sums.mean_square(index) / totals[index] / 2 for index in (0, 1) if totals[index])

    rows = []
    for layer in layers:
        weights, activation = parts[layer.node, "weights"], parts[layer.node, "activation"]
        whole = _whole(parts, layer)
        signal, noise = power[layer.node]
        rows.append(
            Sensitivity(
                layer=layer,
                mac_share=layer.macs / macs,
                whole=whole.change(together.positives),
                weights=weights.change(together.positives),
                activation=activation.change(together.positives),
                sqnr_db=_decibel(signal, noise),
                damage=damage(whole),
                weights_damage=damage(weights),
                activation_damage=damage(activation),
            )
        )
    rows.sort(key=lambda row: -row.damage)
    return Sensitivities(
        tuple(rows), together.change(together.positives), together.photographs, together.positives
    )


def _decibel(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
