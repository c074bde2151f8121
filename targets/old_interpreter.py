"""Running an Edge TPU file in an interpreter of the Edge TPU compiler's age, where one is to be found.

`EDGEQC_OLD_TFLITE` names a Python that has an old `tflite_runtime`, for example one made with
`python3.9 -m venv old && old/bin/pip install tflite-runtime==2.7.0 'numpy<1.24'`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from targets.errors import CompilerError

VARIABLE = "EDGEQC_OLD_TFLITE"
TIMEOUT_S = 120
# Feeds zeros, which are mid-grey, and prints what came out.
_PROGRAM = """
import json, sys
import numpy
import tflite_runtime
from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1])
interpreter.allocate_tensors()
(source,) = interpreter.get_input_details()
interpreter.set_tensor(source["index"], numpy.zeros(source["shape"], source["dtype"]))
interpreter.invoke()
outputs = {}
for d in interpreter.get_output_details():
    outputs[d["name"]] = interpreter.get_tensor(d["index"]).ravel().tolist()
print(json.dumps({"version": tflite_runtime.__version__, "outputs": outputs}))
"""


def run(path: Path) -> dict[str, Any] | None:
    """Run `path` once on mid-grey.

    Returns:
        `version` and `outputs` (tensor name -> int8 values), or None where no old interpreter is named.

    Raises:
        CompilerError: it does not load or run the file, or the variable names no such Python.
    """
    python = os.environ.get(VARIABLE)
    if not python:
        return None
    try:
        done = subprocess.run(
            [python, "-c", _PROGRAM, str(path)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CompilerError(
            f"{VARIABLE} names no usable Python", wanted="one with tflite_runtime", got=exc
        ) from exc
    if done.returncode != 0:
        raise CompilerError(f"the old interpreter does not run {path}", got=done.stderr.strip()[-500:])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
