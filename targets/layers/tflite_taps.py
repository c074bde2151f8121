"""Taps in a TFLite flatbuffer: tensors that are inside become outputs of the graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import UnsupportedOpError
from targets.layers.layer import INPUT, Layer, LoweredFile, Replay, Steps, on_grid, sdk, unreadable
from targets.tflite_file import operations, read
from targets.tflite_writer import pack

_GIVEN = "given/"


class TfliteFile(LoweredFile):
    """An int8 flatbuffer. A PAD belongs to the convolution behind it.

    Raises:
        InputError: no TFLite file, one that the Edge TPU compiler wrote, or a tensor without one scale.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.model = read(path.read_bytes())
        except UnsupportedOpError as exc:
            raise unreadable(path, str(exc.got)) from exc
        self.graph = self.model.subgraphs[0]
        self.indices: dict[str, int] = {}
        self.layers = tuple(self._read())

    def _read(self) -> list[Layer]:
        names = {self.graph.inputs[0]: INPUT}  # tensor -> layer
        layers = [self._layer(INPUT, INPUT, "input", (), self.graph.inputs[0])]
        self.indices[INPUT] = self.graph.inputs[0]
        for operator, kind in zip(self.graph.operators, operations(self.model)):
            if kind in ("?", "CUSTOM") or len(operator.outputs) != 1:
                raise unreadable(
                    self.path,
                    "a custom operation, as the Edge TPU compiler writes it, which shows nothing inside",
                )
            output = operator.outputs[0]
            sources = tuple(names[index] for index in operator.inputs if index in names)
            if kind == "PAD":
                names[output] = sources[0]
                continue
            label = self.graph.tensors[output].name.decode()
            names[output] = label.rpartition("/")[2]
            self.indices[names[output]] = output
            layers.append(self._layer(names[output], label, kind, sources, output))
        return layers

    def _layer(self, name: str, label: str, kind: str, sources: tuple[str, ...], index: int) -> Layer:
        tensor = self.graph.tensors[index]
        grid = tensor.quantization
        if grid is None or grid.scale is None or len(grid.scale) != 1:
            raise unreadable(self.path, f"tensor {tensor.name.decode()} is not on the grid")
        return Layer(name, label, kind, sources, float(grid.scale[0]), zero_point=int(grid.zeroPoint[0]))

    def steps(self, layers: Sequence[Layer]) -> dict[str, float]:
        """See `LoweredFile.steps`."""
        own = {layer.name: layer.step for layer in self.layers}
        return {layer.name: own[layer.name] for layer in layers if layer.name in own}

    def write_tapped(self, layers: Sequence[Layer], folder: Path) -> dict[str, str]:
        """See `LoweredFile.write_tapped`."""
        model = copy.deepcopy(self.model)
        graph = model.subgraphs[0]
        own = {*graph.inputs, *graph.outputs}
        taps = [layer.name for layer in layers if self.indices[layer.name] not in own]
        graph.outputs = [*graph.outputs, *(self.indices[name] for name in taps)]
        (folder / self.path.name).write_bytes(pack(model))
        return {name: self.graph.tensors[self.indices[name]].name.decode() for name in taps}

    def replay(self) -> Replay:
        """TFLite's reference kernels, one operation at a time."""
        return _TfliteReplay(self)


class _TfliteReplay(Replay):
    def __init__(self, file: TfliteFile) -> None:
        litert = sdk("litert")
        self.zero_points = {layer.name: layer.zero_point for layer in file.layers}
        model = copy.deepcopy(file.model)
        graph = model.subgraphs[0]
        given = {}
        for name, index in file.indices.items():
            tensor = copy.deepcopy(graph.tensors[index])
            tensor.name = f"{_GIVEN}{name}".encode()
            given[index] = len(graph.tensors)
            graph.tensors.append(tensor)
        for operator in graph.operators:
            operator.inputs = [given.get(index, index) for index in operator.inputs]
        read_at_all = {index for operator in graph.operators for index in operator.inputs}
        graph.inputs = [index for index in given.values() if index in read_at_all]
        made = [name for name in file.indices if name != INPUT]
        graph.outputs = [file.indices[name] for name in made]
        for name in made:
            graph.tensors[file.indices[name]].name = name.encode()
        self.interpreter: Any = litert.Interpreter(
            model_content=pack(model), experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF
        )
        self.interpreter.allocate_tensors()
        self.given = [
            (detail["name"].removeprefix(_GIVEN), detail["index"])
            for detail in self.interpreter.get_input_details()
        ]
        self.made = [(detail["name"], detail["index"]) for detail in self.interpreter.get_output_details()]
        self.how = "LiteRT's reference kernels, operation by operation"

    def run(self, given: Mapping[str, Steps]) -> dict[str, Steps]:
        for name, index in self.given:
            values = on_grid(given[name], self.zero_points[name])
            turned = values.transpose(0, 2, 3, 1) if values.ndim == 4 else values
            self.interpreter.set_tensor(index, np.ascontiguousarray(turned))
        self.interpreter.invoke()
        found = {}
        for name, index in self.made:
            values = self.interpreter.get_tensor(index).astype(np.float32) - self.zero_points[name]
            found[name] = values.transpose(0, 3, 1, 2) if values.ndim == 4 else values
        return found
