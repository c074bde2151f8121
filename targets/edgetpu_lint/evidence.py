"""What a rule rests on. A rule that has nothing here to stand on must not decide anything.

Three kinds of witness, in falling order of weight:

- *ground truth*: a real model and what Google's compiler made of it (`expected.json`), told by its file's name;
- *vendor*: the table of supported operations and their known limitations;
- *report*: a compiler's log that somebody published, with the thread that holds it.

Rules are asked with a `Knowledge`, so that the benchmark can take a family's witnesses away and see whether the
others still foretell it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

VENDOR = "vendor"
REPORT = "report"


@dataclass(frozen=True)
class Evidence:
    """One witness.

    Attributes:
        kind: `vendor`, `report`, or for ground truth the owner of the repository that the model is from.
        where: address, or the ground-truth model's file name.
    """

    kind: str
    where: str

    @property
    def text(self) -> str:
        """For people."""
        names = {VENDOR: "vendor's table", REPORT: "published log"}
        return f"{names.get(self.kind, 'ground truth')}: {self.where}"


Knowledge = Callable[[Evidence], bool]
"""Whether a witness may be heard."""


def everything(_evidence: Evidence) -> bool:
    """Hear every witness."""
    return True


def without(kinds: Iterable[str]) -> Knowledge:
    """Hear all witnesses but those of `kinds`."""
    silent = frozenset(kinds)
    return lambda evidence: evidence.kind not in silent


def _report(thread: str) -> Evidence:
    return Evidence(REPORT, f"https://github.com/{thread}")


TABLE = Evidence(VENDOR, "https://coral.ai/docs/edgetpu/models-intro/#supported-operations")
MODEL_REQUIREMENTS = Evidence(VENDOR, "https://coral.ai/docs/edgetpu/models-intro/#model-requirements")

# Ground truth: the owner of the repository, and the model's file.
FLOAT_INPUT = Evidence("Jorgitou98", "63649510c999_N32-nMACs41287680_quant.tflite")
WIDE = Evidence("Jorgitou98", "2c36f458142a_N525-nMACs10218700800_quant.tflite")
POOLED = Evidence("Jorgitou98", "30f05bbb4ee6_model_size_channel232_quant.tflite")
DECODER = Evidence("google-coral", "29c142d62cd1_posenet_mobilenet_v1_075_481_641_quant_decoder.tflite")
DECODER_INT8 = Evidence(
    "google-coral", "5736564bf36c_posenet_mobilenet_v1_075_721_1281_16_quant_decoder.tflite"
)
DEEPLAB = Evidence("google-coral", "322fe29945cb_deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite")
SEQUENCE = Evidence("google-coral", "ac718e4b2773_keras_lstm_mnist_ptq.tflite")
MOBILENET = Evidence("google-coral", "21e022f6603d_mobilenet_v1_0.5_160_quant.tflite")
DEEP = Evidence("iwatake2222", "04b5624fa839_model_conv_128x128x3x32x7x50.tflite")
SUMS = Evidence("iwatake2222", "c2261251d90c_model_mat_Add.tflite")
SOFT_ARGMAX = Evidence("ricardodeazambuja", "c19d0c207ac3_bright_128x128.tflite")
GABOR = Evidence("ricardodeazambuja", "19572e5ed5af_gabor_128x128_7k_4o_2s.tflite")
LOOMING = Evidence("ricardodeazambuja", "aedc240c9b51_looming_128x128_3x3.tflite")

# Published logs and the compiler team's words about them.
FLOAT_ENDS = _report("f0cal/google-coral/issues/20")
ONE_SUBGRAPH = _report("google-coral/edgetpu/issues/461")
BATCH = _report("google-coral/edgetpu/issues/30")
COMPUTED_WEIGHTS = _report("google-coral/edgetpu/issues/25")
DYNAMIC = _report("google-coral/edgetpu/issues/829")
LARGE_ACTIVATIONS = _report("google-coral/edgetpu/issues/439")
RESIZED = _report("google-coral/edgetpu/issues/31")
RESHAPED = _report("google-coral/edgetpu/issues/512")
LONG_SEQUENCE = _report("google-coral/edgetpu/issues/598")
LARGE_TRANSPOSED = _report("google-coral/edgetpu/issues/684")
LOG_YOLO9 = _report("dbro/frigate-detector-edgetpu-yolo9")
TRANSPOSED = _report("ultralytics/ultralytics/issues/4089")
POSTPROCESS = _report("tensorflow/models/issues/10695")
