"""TensorRT engines: built on the device from the artifact's ONNX, kept in the user's cache.

An engine fits one TensorRT version and one GPU, so it is never shipped. The build takes minutes on a Jetson;
the cache's key (ONNX bytes, precision, TensorRT version, GPU) makes it happen once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from edge.artifact import Artifact
from edge.backends._cache import cache_folder
from edge.errors import IncompatibleArtifactError
from edge.folders import sha256, write_atomically
from edge.progress import step

# Precisions that the file itself carries: explicit Q/DQ is int8 or mixed, float16 and float32 tensors are what they
# are.
_AS_WRITTEN = ("int8", "mixed", "fp16", "fp32")


def engine(trt: Any, logger: Any, artifact: Artifact, gpu: str) -> bytes:
    """Return the serialized engine for this artifact on this GPU, from the cache or freshly built.

    Raises:
        IncompatibleArtifactError: this TensorRT refuses the ONNX or cannot build at the precision.
    """
    file = engine_file(trt, artifact, gpu)
    if file.is_file():
        return file.read_bytes()
    with step(f"building the TensorRT engine of {artifact.name} for {gpu} (once; kept in {file.parent})"):
        plan = build(trt, logger, artifact)
    write_atomically(file, plan)
    return plan


def engine_file(trt: Any, artifact: Artifact, gpu: str) -> Path:
    """Where the engine of this ONNX, TensorRT version and GPU is kept."""
    key = "\n".join((sha256(artifact.model_file), artifact.precision, str(trt.__version__), gpu))
    return cache_folder("tensorrt") / f"{hashlib.sha256(key.encode()).hexdigest()}.engine"


def build(trt: Any, logger: Any, artifact: Artifact) -> bytes:
    """Parse the ONNX and build the engine; see `engine` for what it raises."""
    builder = trt.Builder(logger)
    switches = trt.NetworkDefinitionCreationFlag
    flags = 0
    # TensorRT 9 and later: every tensor has the type that the file says, and no other.
    strongly_typed = artifact.precision in _AS_WRITTEN and hasattr(switches, "STRONGLY_TYPED")
    if strongly_typed:
        flags |= 1 << int(switches.STRONGLY_TYPED)
    if hasattr(switches, "EXPLICIT_BATCH") and int(str(trt.__version__).split(".")[0]) < 10:
        flags |= 1 << int(switches.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(artifact.model_file.read_bytes()):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise IncompatibleArtifactError(
            f"TensorRT {trt.__version__} does not accept {artifact.model_file}",
            got=problems[:500],
            next_step="export with the device profile of this JetPack",
        )
    config = builder.create_builder_config()
    _permit(trt, config, artifact, strongly_typed)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise IncompatibleArtifactError(
            f"TensorRT {trt.__version__} cannot build {artifact.model_file}",
            got="the builder's own messages are above",
            next_step="free memory and try again, or export with the device profile of this JetPack",
        )
    return bytes(memoryview(plan))


def _permit(trt: Any, config: Any, artifact: Artifact, strongly_typed: bool) -> None:
    """Allow the builder what the artifact's precision asks for, and forbid TF32, which nobody asked for."""
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if strongly_typed or artifact.precision == "fp32":
        return
    flag = getattr(
        trt.BuilderFlag, {"int8": "INT8", "mixed": "INT8", "fp16": "FP16"}.get(artifact.precision, ""), None
    )
    if flag is None:
        raise IncompatibleArtifactError(
            f"TensorRT {trt.__version__} has no switch for precision {artifact.precision}",
            wanted=" or ".join(_AS_WRITTEN),
            got=artifact.precision,
            next_step="export at another precision",
        )
    config.set_flag(flag)
