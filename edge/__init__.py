"""edgeqc on the device: verdict and mask for a camera frame, through one backend interface.

Imports the standard library and numpy, nothing else; SDKs are imported by the backend that needs them.

>>> from edge import open_inspector                                   # doctest: +SKIP
>>> with open_inspector("artifacts/openvino") as inspector:           # doctest: +SKIP
...     inspection = inspector.inspect(frame)  # uint8, HxW or HxWx3
...     inspection.verdict, inspection.mask.sum()
"""

from __future__ import annotations

from edge.artifact import Artifact
from edge.errors import EdgeError
from edge.inspector import Inspection, Inspector, open_inspector

__all__ = ["Artifact", "EdgeError", "Inspection", "Inspector", "open_inspector"]
