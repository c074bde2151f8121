"""Which pooling of the mask makes the baseline's best verdict: chosen on ``val``, once, after the training."""

from __future__ import annotations

import torch
from sklearn.metrics import average_precision_score

from quantize.data.framed import FramedSet
from quantize.models.pixel_only import POOLINGS, PixelOnly, pool
from quantize.training.augmentation import centered

BATCH = 16


@torch.inference_mode()
def choose_pooling(model: PixelOnly, val: FramedSet) -> str:
    """The pooling of ``POOLINGS`` with the highest AP on the tiles of ``val``; of equals, the first."""
    model.eval()
    masks = torch.cat([model(centered(tiles))[1] for tiles in val.tiles.split(BATCH)])
    scores = {name: pool(masks, name) for name in POOLINGS}
    label = val.defective.numpy()
    return max(scores, key=lambda name: float(average_precision_score(label, scores[name].flatten().numpy())))
