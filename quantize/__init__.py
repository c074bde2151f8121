"""The training side: networks, data, training, metrics, and the one quantization grid."""

from __future__ import annotations

import os

# Before torch loads OpenMP: threads that wait by spinning take the processor away from what they wait for as soon
# as the machine has anything else to do (calibration: 10 seconds alone, 350 beside one other training). This makes
# them sleep after some 30 microseconds.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
