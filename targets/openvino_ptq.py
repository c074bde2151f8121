"""OpenVINO's own post-training quantization, as a candidate: NNCF, on the images that set the ranges of the grid.

It chooses its own grid (zero points wherever it likes), so no other device computes these integers, and its verdicts
are its own. It is here because it is what an OpenVINO user would reach for, to be measured beside ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any

from targets.errors import TargetError
from targets.lowering import Network


def quantized_by_nncf(model: Any, network: Network, *, saturates: bool) -> Any:
    """An OpenVINO model in float32, quantized.

    Args:
        saturates: the device adds products of int8 in int16; NNCF then halves the range of the weights.

    Raises:
        TargetError: NNCF is not installed, or refuses the model.
    """
    nncf = _import()
    fix = nncf.quantization.advanced_parameters.OverflowFix
    parameters = nncf.AdvancedQuantizationParameters(overflow_fix=fix.ENABLE if saturates else fix.DISABLE)
    images = [batch.numpy() for batch in network.batches()]
    logging.getLogger("nncf").setLevel(logging.ERROR)
    try:
        # Its progress bars go to standard output, which belongs to --json.
        with contextlib.redirect_stdout(sys.stderr):
            return nncf.quantize(
                model,
                nncf.Dataset(images),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(images),
                advanced_parameters=parameters,
            )
    except nncf.errors.InternalError as error:
        raise TargetError("NNCF cannot quantize the network", got=str(error).splitlines()[0]) from error


def _import() -> Any:
    """NNCF without its telemetry, which reports every use to Intel's analytics."""
    marked = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        import nncf
    except ImportError as error:
        raise TargetError(
            "precision nncf needs OpenVINO's quantizer",
            got=str(error),
            next_step="pip install 'edgeqc[toolkit]', or leave the precision out",
        ) from error
    finally:
        if marked is None:
            del os.environ["NNCF_CI"]
    return nncf
