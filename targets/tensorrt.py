"""ONNX for TensorRT. The engine is built on the device, because it fits one TensorRT version and one GPU.

int8 and mixed are explicit Q/DQ, fp16 is a graph of float16 tensors: all are what a strongly typed network reads.
Where NVIDIA's builder is installed (`tensorrt-rtx`, no GPU needed) its parser and builder have to accept the file.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from targets.errors import CompilerError
from targets.lowering import ON_GRID, Lowered, Network, check_precision
from targets.onnx import MODEL, write_onnx
from targets.profile import Profile

NAME = "tensorrt"
BACKEND = "tensorrt"
PRECISIONS = ("int8", "mixed", "fp16", "fp32")
STAND_IN = {"backend": "onnx", "device": "cpu"}
BUILDER = "tensorrt_rtx_bindings"


def lower(network: Network, precision: str, folder: Path, profile: Profile) -> Lowered:
    """Write `model.onnx`, and let NVIDIA's builder judge it where there is one.

    Raises:
        CompilerError: NVIDIA's parser or builder refuses the file.
    """
    check_precision(precision, sys.modules[__name__])
    lowered = write_onnx(network, precision, folder, profile, STAND_IN, shift=precision in ON_GRID)
    if find_spec(BUILDER) is None:
        verdict = {
            "checked_by": None,
            "note": "pip install 'edgeqc[tensorrt-check]' lets NVIDIA's builder judge it",
        }
    else:
        verdict = build(folder / MODEL)
    return replace(lowered, facts={**lowered.facts, "builder": verdict})


def build(file: Path) -> dict[str, Any]:
    """Parse and build `file` with TensorRT for RTX, strongly typed; the engine itself is thrown away.

    Raises:
        CompilerError: what the parser or the builder said.
    """
    trt = import_module(BUILDER)
    logger = _Messages(trt)
    builder = trt.Builder(logger.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger.logger)
    if not parser.parse(file.read_bytes()):
        problems = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise CompilerError(f"NVIDIA's parser refuses {file}", got="; ".join(problems)[:1000])
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise CompilerError(f"NVIDIA's builder refuses {file}", got="; ".join(logger.messages)[:1000])
    return {"checked_by": f"TensorRT for RTX {trt.__version__}", "layers": network.num_layers}


class _Messages:
    """A TensorRT logger that keeps warnings and errors in place of printing them."""

    def __init__(self, trt: Any) -> None:
        messages: list[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.WARNING:
                    messages.append(message)

        self.messages, self.logger = messages, Logger()
