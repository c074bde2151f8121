"""What OpenVINO answers to a Q/DQ graph, in a process of its own: its kernels are chosen by the environment.

`python tests/openvino_answers.py MODEL.onnx FRAMES.npy OUT.npz`; frames are float32 [N, C, H, W].
"""

from __future__ import annotations

import sys

import numpy as np

if __name__ == "__main__":
    import openvino as ov

    model, frames, out = sys.argv[1:]
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = [compiled([frame[None]]) for frame in np.load(frames)]
    names = ("defect", "mask")
    np.savez(out, **{name: np.concatenate([answer[name] for answer in answers]) for name in names})
