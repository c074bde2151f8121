"""From evidence to a mask that ends where the defect ends: GrabCut (Rother et al., SIGGRAPH 2004) around each find.

The paper refines with a conditional random field. Ours is OpenCV's GrabCut, a two-label one solved by a graph cut
with colour models of the two sides, because evidence reaches past a small defect on every side and only the
pixels can say where it ends. Measured against a guided filter in docs/weak.md.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.preprocess import FloatArray, UInt8Array

NEAR_SHARE = 1 / 40  # of the shorter side: how far past the evidence a defect may reach
CONTEXT_SHARE = 1 / 12  # ... and how much surface around it the model of the background sees
BACKGROUND_SHARE = 1 / 8  # window of the median that stands for the surface
SURE = 0.7  # share of a find's evidence, from the cut to its peak, that is called defect at first
ITERATIONS = 2
LEAST_PIXELS = 4
LEAST_SAMPLES = 8  # a colour model has five components


def refine(image: UInt8Array, evidence: FloatArray, cut: float) -> NDArray[np.bool_]:
    """The mask of one photograph.

    Args:
        image: uint8 H x W x C, C 1 or 3.
        evidence: logits H x W.
        cut: evidence from here on is a find; each connected one is cut out by itself.
    Returns:
        bool H x W; a find of which GrabCut leaves nothing stays as it was.
    """
    found = evidence >= cut
    mask = np.zeros(found.shape, bool)
    if not found.any():
        return mask
    planes = _planes(image)
    side = min(found.shape)
    near_px, context_px = max(2, round(side * NEAR_SHARE)), max(4, round(side * CONTEXT_SHARE))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8))
    for index in range(1, count):
        left, top, width, height = boxes[index][:4].tolist()
        window = (
            slice(max(0, top - context_px), top + height + context_px),
            slice(max(0, left - context_px), left + width + context_px),
        )
        find = labels[window] == index
        sure = cut + SURE * (float(evidence[window][find].max()) - cut)
        trimap = np.full(find.shape, cv2.GC_BGD, np.uint8)
        trimap[cv2.dilate(find.astype(np.uint8), _square(near_px)) > 0] = cv2.GC_PR_BGD
        trimap[find] = cv2.GC_PR_FGD
        outside = np.count_nonzero(trimap == cv2.GC_BGD)
        if min(outside, np.count_nonzero(find)) < LEAST_SAMPLES:  # nothing to model the one or the other by
            mask[window] |= find
            continue
        trimap[find & (evidence[window] >= sure)] = cv2.GC_PR_FGD
        cv2.setRNGSeed(0)  # GrabCut starts its colour models with k-means
        cv2.grabCut(
            np.ascontiguousarray(planes[window]),
            trimap,
            None,  # type: ignore[arg-type]
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            ITERATIONS,
            cv2.GC_INIT_WITH_MASK,
        )
        cut_out = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
        mask[window] |= cut_out if np.count_nonzero(cut_out) >= LEAST_PIXELS else find
    return mask


def _planes(image: UInt8Array) -> UInt8Array:
    """What GrabCut looks at, three planes: grey twice as brightness and as difference from the surface; or RGB.

    The lighting of a surface drifts by more than a faint defect differs, so its median is taken off.
    """
    if image.shape[2] == 3:
        return image
    grey = np.ascontiguousarray(image[:, :, 0])
    window = max(3, round(min(grey.shape) * BACKGROUND_SHARE)) | 1
    surface = cv2.medianBlur(grey, window)
    flat = np.clip(grey.astype(np.int16) - surface + 128, 0, 255).astype(np.uint8)
    return np.stack([grey, flat, flat], axis=2)


def _square(radius: int) -> NDArray[np.uint8]:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
