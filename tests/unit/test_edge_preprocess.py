"""Framing against a slow exact reference, and its invariants."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from edge import preprocess
from edge.errors import InputError
from edge.preprocess import Framing, InputSpec

hypothesis = pytest.importorskip("hypothesis", reason="property tests need hypothesis")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as arrays  # noqa: E402

SIDES = st.integers(1, 13)
IMAGES = arrays.arrays(np.uint8, st.tuples(SIDES, SIDES))
FRAMES = arrays.arrays(np.uint8, st.one_of(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES, st.just(3))))


def weights(source: int, target: int) -> list[dict[int, Fraction]]:
    """The specification in words of fractions: for each output pixel, the weight of each source pixel."""
    if target <= source:  # the share of output pixel i that source pixel j covers
        size = Fraction(source, target)
        return [
            {
                j: (min((i + 1) * size, j + 1) - max(i * size, j)) / size
                for j in range(int(i * size), -int(-(i + 1) * size // 1))
            }
            for i in range(target)
        ]
    rows = []
    for i in range(target):
        position = (Fraction(2 * i + 1, 2)) * source / target - Fraction(1, 2)
        low = position.numerator // position.denominator
        row: dict[int, Fraction] = {}
        for j, weight in ((low, 1 - (position - low)), (low + 1, position - low)):
            clamped = min(max(j, 0), source - 1)
            row[clamped] = row.get(clamped, Fraction(0)) + weight
        rows.append(row)
    return rows


def reference(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Exact rational arithmetic; `round` of a Fraction rounds half to even."""
    down, across = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.array(
        [
            [
                round(sum(wy * wx * int(image[y, x]) for y, wy in row.items() for x, wx in column.items()))
                for column in across
            ]
            for row in down
        ],
        np.uint8,
    )


@given(IMAGES, SIDES, SIDES)
def test_resize_is_the_exact_specification(image, height, width):
    np.testing.assert_array_equal(preprocess.resize(image, height, width), reference(image, height, width))


@given(arrays.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))), SIDES, SIDES)
def test_resize_treats_channels_alone(image, height, width):
    planes = [preprocess.resize(np.ascontiguousarray(image[:, :, c]), height, width) for c in range(3)]
    np.testing.assert_array_equal(preprocess.resize(image, height, width), np.stack(planes, axis=-1))


@pytest.mark.parametrize("size", [(1024, 1280), (517, 403), (1944, 2592), (37, 5000)])
@pytest.mark.parametrize("target", [(256, 256), (224, 320), (600, 600)])
def test_resize_of_large_images_matches_long_double_sums(size, target):
    """Full sizes against dense weights; the reference in fractions would take minutes."""
    image = np.random.default_rng(0).integers(0, 256, size, np.uint8)

    def dense(source, to):
        matrix = np.zeros((to, source))
        for i, row in enumerate(weights(source, to)):
            for j, weight in row.items():
                matrix[i, j] = weight
        return matrix

    exact = dense(size[0], target[0]) @ image.astype(float) @ dense(size[1], target[1]).T
    got = preprocess.resize(image, *target)
    assert np.abs(got - exact).max() <= 0.5 + 1e-6


@given(IMAGES)
def test_resize_to_the_same_size_is_the_very_same_array(image):
    assert preprocess.resize(image, *image.shape) is image


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 255))
def test_constant_images_stay_constant(rows, columns, height, width, value):
    image = np.full((rows, columns), value, np.uint8)
    assert (preprocess.resize(image, height, width) == value).all()


@given(IMAGES, SIDES, SIDES)
def test_resize_stays_within_the_image_s_range(image, height, width):
    out = preprocess.resize(image, height, width)
    assert image.min() <= out.min() and out.max() <= image.max()


@given(IMAGES, SIDES, SIDES)
def test_resize_commutes_with_mirrors_and_transposition(image, height, width):
    out = preprocess.resize(image, height, width)
    np.testing.assert_array_equal(preprocess.resize(image[::-1, ::-1], height, width), out[::-1, ::-1])
    np.testing.assert_array_equal(preprocess.resize(image.T, width, height), out.T)


def test_nothing_small_vanishes():
    frame = np.zeros((1024, 1280), np.uint8)
    frame[700, 900] = 255
    assert preprocess.resize(frame, 256, 256).max() > 0


@given(arrays.arrays(np.uint8, st.tuples(SIDES, SIDES, st.sampled_from([1, 3]))))
def test_encodings_are_exact(tile):
    height, width, channels = tile.shape
    x = (tile.astype(np.float64) - 128) / 128  # the network's definition
    for layout in ("nchw", "nhwc"):
        size = (width, height, channels, layout)
        shaped = x[None].transpose(0, 3, 1, 2) if layout == "nchw" else x[None]
        plain = preprocess.encode(tile, InputSpec(*size))
        q = preprocess.encode(tile, InputSpec(*size, "int8", "xor80"))
        real = preprocess.encode(tile, InputSpec(*size, "float32", "centered_float"))
        for array in (plain, q, real):
            assert array.flags.c_contiguous and array.shape == shaped.shape
        np.testing.assert_array_equal((plain.astype(np.float64) - 128) / 128, shaped)
        np.testing.assert_array_equal(q.astype(np.float64) / 128, shaped)  # scale 1/128, zero point 0
        np.testing.assert_array_equal(real.astype(np.float64), shaped)


@given(FRAMES, st.sampled_from(["resize", "tile"]), st.sampled_from([1, 3]))
def test_frames_are_never_written(frame, mode, channels):
    before = frame.copy()
    spec = InputSpec(1, 1, channels, "nhwc", "int8", "xor80")
    frame.setflags(write=False)
    tiles, _ = preprocess.frame_to_tiles(frame, spec, Framing(mode))
    for tile in tiles:
        preprocess.encode(tile, spec)
    np.testing.assert_array_equal(frame, before)


@given(st.integers(4, 40), st.integers(4, 40), st.integers(2, 4), st.integers(2, 4), st.integers(0, 1))
def test_tiles_cover_the_frame_and_overlap(rows, columns, height, width, overlap):
    spec = InputSpec(width, height)
    placement = preprocess.place(rows, columns, spec, Framing("tile", overlap))
    seen = np.zeros((rows, columns), int)
    for top, left, h, w in placement.boxes:
        assert (h, w) == (height, width)
        assert top >= 0 and left >= 0 and top + h <= rows and left + w <= columns
        seen[top : top + h, left : left + w] += 1
    assert seen.min() >= 1
    for starts, size in (({b[0] for b in placement.boxes}, height), ({b[1] for b in placement.boxes}, width)):
        ordered = sorted(starts)
        assert all(after - before <= size - overlap for before, after in zip(ordered, ordered[1:]))


def test_tiles_are_the_frame_s_own_pixels():
    frame = np.arange(60, dtype=np.uint8).reshape(6, 10)
    tiles, placement = preprocess.frame_to_tiles(frame, InputSpec(4, 3), Framing("tile"))
    for tile, (top, left, height, width) in zip(tiles, placement.boxes):
        np.testing.assert_array_equal(tile[:, :, 0], frame[top : top + height, left : left + width])


def test_grey_from_rgb_is_the_stated_integer_rule():
    rgb = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    wanted = [(77 * int(r) + 150 * int(g) + 29 * int(b) + 128) >> 8 for r, g, b in rgb.reshape(-1, 3)]
    np.testing.assert_array_equal(preprocess.to_channels(rgb, 1).reshape(-1), wanted)
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(preprocess.to_channels(np.stack([grey] * 3, -1), 1)[..., 0], grey)
    np.testing.assert_array_equal(preprocess.to_channels(grey, 3), np.stack([grey] * 3, -1))


@given(IMAGES, SIDES, SIDES)
def test_masks_are_framed_like_their_images(mask, height, width):
    placement = preprocess.place(*mask.shape, InputSpec(width, height), Framing("resize"))
    framed = preprocess.mask_to_tiles(mask, placement, InputSpec(width, height))
    assert framed.shape == (1, height, width) and framed.dtype == np.float32
    assert framed.min() >= 0 and framed.max() <= 1
    if not mask.any():
        assert not framed.any()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ([[1, 2], [3, 4]], "not an array"),
        (np.zeros((4, 4), np.float32), "wrong type"),
        (np.zeros((4, 4), np.uint16), "wrong type"),
        (np.zeros((4, 4), bool), "wrong type"),
        (np.zeros((4,), np.uint8), "wrong shape"),
        (np.zeros((4, 4, 4), np.uint8), "wrong shape"),
        (np.zeros((4, 4, 1), np.uint8), "wrong shape"),
        (np.zeros((0, 4), np.uint8), "wrong shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), "wrong shape"),
    ],
)
def test_wrong_frames_are_refused(frame, said):
    with pytest.raises(InputError, match=said):
        preprocess.frame_to_tiles(frame, InputSpec(4, 4), Framing("resize"))


@pytest.mark.parametrize(
    ("framing", "size"),
    [(Framing("exact"), (4, 5)), (Framing("tile"), (3, 9)), (Framing("tile", 4), (9, 9))],
)
def test_frames_that_do_not_fit_the_framing_are_refused(framing, size):
    with pytest.raises(InputError):
        preprocess.frame_to_tiles(np.zeros(size, np.uint8), InputSpec(4, 4), framing)


@pytest.mark.parametrize(
    "make",
    [
        lambda: InputSpec(0, 4),
        lambda: InputSpec(4, 4, 2),
        lambda: InputSpec(4, 4, 1, "chw"),
        lambda: InputSpec(4, 4, 1, "nchw", "int8", "identity"),
        lambda: InputSpec(4, 4, 1, "nchw", "uint8", "normalised"),
        lambda: Framing("crop"),
        lambda: Framing("tile", -1),
    ],
)
def test_unusable_specifications_are_refused(make):
    with pytest.raises(InputError):
        make()
