"""Masks and regions against slow references."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edge import postprocess
from edge.inspector import overlay
from edge.postprocess import Region
from edge.preprocess import Placement

hypothesis = pytest.importorskip("hypothesis", reason="property tests need hypothesis")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as arrays  # noqa: E402

# Sixteenths against odd thirty-seconds: far from every rounding.
LOGITS = arrays.arrays(
    np.int8, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(-64, 64)
).map(lambda q: q.astype(np.float32) / 16)
THRESHOLD = st.integers(-60, 60).map(lambda k: (2 * k + 1) / 32)
MASKS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def full_bilinear(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Every output pixel on its own, in float64."""
    rows, columns = logits.shape
    out = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            v, u = (y + 0.5) * rows / height - 0.5, (x + 0.5) * columns / width - 0.5
            y0, x0 = int(np.floor(v)), int(np.floor(u))
            total = 0.0
            for yy, wy in ((y0, 1 - (v - y0)), (y0 + 1, v - y0)):
                for xx, wx in ((x0, 1 - (u - x0)), (x0 + 1, u - x0)):
                    total += wy * wx * float(logits[min(max(yy, 0), rows - 1), min(max(xx, 0), columns - 1)])
            out[y, x] = total
    return out


@given(LOGITS, THRESHOLD, st.integers(1, 40), st.integers(1, 40))
def test_mask_at_is_the_full_bilinear_map(logits, threshold, height, width):
    full = full_bilinear(logits, height, width)
    sure = np.abs(full - threshold) > 1e-4  # nearer than that, float32 and float64 may differ
    np.testing.assert_array_equal(
        postprocess.mask_at(logits, threshold, height, width)[sure], (full >= threshold)[sure]
    )


@pytest.mark.parametrize("corner", [(0, 0), (0, 7), (7, 0), (7, 7)])
def test_masks_reach_the_border(corner):
    logits = np.full((8, 8), -1, np.float32)
    logits[corner] = 1
    mask = postprocess.mask_at(logits, 0.0, 256, 256)
    assert mask[0 if corner[0] == 0 else -1, 0 if corner[1] == 0 else -1]


@given(LOGITS)
def test_mask_at_the_same_size_is_the_comparison(logits):
    np.testing.assert_array_equal(postprocess.mask_at(logits, 1 / 32, *logits.shape), logits >= 1 / 32)


def test_dequantize_is_the_stated_formula():
    q = np.arange(-128, 128, dtype=np.int8)
    np.testing.assert_array_equal(
        postprocess.dequantize(q, 0.25, -3), (q.astype(np.float32) + 3) * np.float32(0.25)
    )
    logits = np.ones(3, np.float32)
    assert postprocess.dequantize(logits, None, None) is logits


def test_stitch_unites_overlapping_tiles():
    placement = Placement(4, 6, ((0, 0, 4, 4), (0, 2, 4, 4)))
    first, second = np.full((4, 4), -1.0, np.float32), np.full((4, 4), -1.0, np.float32)
    first[1, 3] = second[2, 1] = 1.0
    mask = postprocess.stitch([first, second], placement, 0.0)
    assert mask.shape == (4, 6)
    assert sorted(zip(*map(list, np.nonzero(mask)))) == [(1, 3), (2, 3)]


def flood(mask: np.ndarray) -> list[Region]:
    """Brute force: flood fill over the 4-neighbourhood."""
    left, found = mask.copy(), []
    for y, x in np.argwhere(mask):
        if not left[y, x]:
            continue
        stack, pixels = [(int(y), int(x))], []
        left[y, x] = False
        while stack:
            r, c = stack.pop()
            pixels.append((r, c))
            for rr, cc in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if 0 <= rr < mask.shape[0] and 0 <= cc < mask.shape[1] and left[rr, cc]:
                    left[rr, cc] = False
                    stack.append((rr, cc))
        rows, columns = zip(*pixels)
        found.append(
            Region(
                min(rows),
                min(columns),
                max(rows) - min(rows) + 1,
                max(columns) - min(columns) + 1,
                len(pixels),
            )
        )
    return sorted(found, key=lambda r: (-r.area_px, r.top, r.left, r.height, r.width))


@given(MASKS)
def test_regions_are_those_of_a_flood_fill(mask):
    got = sorted(postprocess.regions(mask), key=lambda r: (-r.area_px, r.top, r.left, r.height, r.width))
    assert got == flood(mask)


@pytest.mark.parametrize("seed", range(5))
def test_regions_of_random_masks(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((40, 60)) < rng.uniform(0.3, 0.7)
    got = sorted(postprocess.regions(mask), key=lambda r: (-r.area_px, r.top, r.left, r.height, r.width))
    assert got == flood(mask)


def test_regions_of_the_worst_mask_take_seconds_not_minutes():
    mask = np.indices((512, 640)).sum(axis=0) % 2 == 0  # a chessboard: every pixel is a region
    start = time.perf_counter()
    assert len(postprocess.regions(mask)) == 512 * 640 // 2
    assert time.perf_counter() - start < 20


def test_overlay_draws_the_outline_and_leaves_the_frame_alone():
    frame = np.full((8, 8), 100, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    picture = overlay(frame, mask)
    assert picture.shape == (8, 8, 3)
    assert (picture[2, 2] == (255, 40, 40)).all()
    assert (picture[3, 3] == 100).all() and (picture[0, 0] == 100).all()
    assert (frame == 100).all()
