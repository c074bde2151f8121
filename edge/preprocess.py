"""From a camera frame to the network's input, the one way there is.

Training, calibration, evaluation and the device all frame through this module. The network is defined on
x = (p - 128) / 128 for a raw pixel p, so there is no mean or standard deviation that could drift: on the
symmetric int8 grid that is scale 1/128 and zero point 0, hence int8 = uint8 ^ 0x80 exactly.

`resize` is the executable specification: downwards an exact area average (nothing small may vanish), upwards
half-pixel bilinear, half rounded to even. All weights are integers over a common denominator and all sums are
integer sums, so the result has the same bytes on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import InputError

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

LAYOUTS = ("nchw", "nhwc")
ENCODINGS = {"identity": "uint8", "xor80": "int8", "centered_float": "float32"}
MODES = ("exact", "resize", "tile")


@dataclass(frozen=True)
class InputSpec:
    """What the model file takes.

    Attributes:
        width, height: pixels of one tile.
        channels: 1 (grey) or 3 (RGB).
        layout: `nchw` or `nhwc`, batch always 1.
        encoding: `identity` (uint8 as it is), `xor80` (int8 = uint8 ^ 0x80), `centered_float`
            (float32 (p - 128) / 128).
        file_dtype: the dtype that goes with the encoding.
    """

    width: int
    height: int
    channels: int = 1
    layout: str = "nchw"
    file_dtype: str = "uint8"
    encoding: str = "identity"

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or self.channels not in (1, 3):
            raise InputError(
                "unusable input size", wanted="width and height of at least 1, 1 or 3 channels", got=self
            )
        if self.layout not in LAYOUTS:
            raise InputError("unknown input layout", wanted=" or ".join(LAYOUTS), got=self.layout)
        if ENCODINGS.get(self.encoding) != self.file_dtype:
            raise InputError(
                "input encoding and file dtype do not go together",
                wanted=", ".join(f"{k} with {v}" for k, v in ENCODINGS.items()),
                got=f"{self.encoding} with {self.file_dtype}",
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the file's input tensor."""
        if self.layout == "nchw":
            return (1, self.channels, self.height, self.width)
        return (1, self.height, self.width, self.channels)


@dataclass(frozen=True)
class Framing:
    """How a frame becomes tiles of the input size.

    Attributes:
        mode: `exact` (the frame has the input's size), `resize` (the whole frame, aspect ratio not kept), or
            `tile` (tiles at full resolution that cover the frame; a frame smaller than a tile is an error).
        overlap: pixels that neighbouring tiles share at least, in mode `tile`.
    """

    mode: str = "resize"
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError("unknown framing", wanted=", ".join(MODES), got=self.mode)
        if self.overlap < 0:
            raise InputError("framing overlap must not be negative", wanted=">= 0", got=self.overlap)


@dataclass(frozen=True)
class Placement:
    """Where the tiles lie in the frame: `boxes[t]` is (top, left, height, width) in frame pixels."""

    frame_height: int
    frame_width: int
    boxes: tuple[tuple[int, int, int, int], ...]


def check_frame(frame: Any) -> UInt8Array:
    """Return `frame` if it is uint8 HxW or HxWx3 with at least one pixel.

    Raises:
        InputError: otherwise.
    """
    wanted = "a uint8 array of shape (height, width) or (height, width, 3)"
    if not isinstance(frame, np.ndarray):
        raise InputError("the frame is not an array", wanted=wanted, got=type(frame).__name__)
    if frame.dtype != np.uint8:
        raise InputError(
            "the frame has the wrong type",
            wanted=wanted,
            got=f"{frame.dtype} of shape {frame.shape}",
            next_step="hand over raw 8-bit pixels; do not normalise them",
        )
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3) or frame.size == 0:
        raise InputError("the frame has the wrong shape", wanted=wanted, got=f"shape {frame.shape}")
    return frame


def to_channels(frame: UInt8Array, channels: int) -> UInt8Array:
    """Convert HxW or HxWx3 (RGB) to HxWxC.

    Grey is (77 R + 150 G + 29 B + 128) >> 8 (ITU-R BT.601 weights in 8-bit fixed point); RGB from grey
    repeats the plane. The input is never written to.
    """
    if frame.ndim == 2:
        plane = frame[:, :, None]
        return plane if channels == 1 else np.repeat(plane, 3, axis=2)
    if channels == 3:
        return frame
    rgb = frame.astype(np.uint32)
    grey = (77 * rgb[..., 0] + 150 * rgb[..., 1] + 29 * rgb[..., 2] + 128) >> 8
    return grey.astype(np.uint8)[:, :, None]


IntArray = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]


@lru_cache(maxsize=256)
def _cuts(source: int, target: int) -> tuple[IntArray, IntArray]:
    """Where `target` equal parts of `source` pixels begin and end: pixel, and share of it in 1 / target."""
    pixels, parts = np.divmod(np.arange(target + 1) * source, target)
    return pixels, parts


def _shrink(values: AnyArray, target: int, dtype: type[np.signedinteger[Any]]) -> AnyArray:
    """Sum `values` [source, ...] over `target` equal parts of the first axis, in units of 1 / target.

    Part i covers [i * source / target, (i + 1) * source / target): the whole pixels from the one where it
    begins, less what of that lies before its beginning, plus what it has of the pixel in which it ends.
    """
    source = len(values)
    least = source // target  # whole pixels of a part: so many, or one more
    pixels, parts = _cuts(source, target)
    total: AnyArray = values[pixels[:-1]].astype(dtype)
    for offset in range(1, least):
        total += values[pixels[:-1] + offset]
    longer = np.flatnonzero(np.diff(pixels) > least)
    total[longer] += values[pixels[longer] + least]
    # One row for each cut; the last cut is the end of the image, where nothing is left over.
    fractions = values[np.minimum(pixels, source - 1)].astype(dtype)
    fractions *= parts.astype(dtype).reshape((-1,) + (1,) * (values.ndim - 1))
    total *= target
    total -= fractions[:-1]
    total += fractions[1:]
    return total


@lru_cache(maxsize=256)
def _neighbours(source: int, target: int) -> tuple[IntArray, IntArray, IntArray]:
    """Half-pixel centres: both neighbours of each output, and the upper one's weight in 1 / (2 target)."""
    low, upper_weight = np.divmod((2 * np.arange(target) + 1) * source - target, 2 * target)
    return np.clip(low, 0, source - 1), np.clip(low + 1, 0, source - 1), upper_weight


def _stretch(values: AnyArray, target: int, dtype: type[np.signedinteger[Any]]) -> AnyArray:
    """Interpolate `values` [source, ...] to `target` along the first axis, in units of 1 / (2 * target)."""
    low, high, weight = _neighbours(len(values), target)
    upper = weight.astype(dtype).reshape((-1,) + (1,) * (values.ndim - 1))
    total: AnyArray = values[low].astype(dtype)
    total *= 2 * target - upper
    total += values[high] * upper
    return total


def _resize_rows(values: AnyArray, target: int, dtype: type[np.signedinteger[Any]]) -> tuple[AnyArray, int]:
    """Resize along the first axis; returns integers and the number of units that make one grey level."""
    if target <= len(values):
        return _shrink(values, target, dtype), len(values)
    return _stretch(values, target, dtype), 2 * target


def _block_sums(image: UInt8Array, rows: int, columns: int) -> npt.NDArray[np.uint32]:
    """Sum `rows` x `columns` blocks by adding strided slices: the fast path for whole factors."""
    narrow = np.uint16 if 255 * rows < 2**16 else np.uint32
    by_row: AnyArray = image[0::rows].astype(narrow)
    for offset in range(1, rows):
        by_row += image[offset::rows]
    total: npt.NDArray[np.uint32] = by_row[:, 0::columns].astype(np.uint32)
    for offset in range(1, columns):
        total += by_row[:, offset::columns]
    return total


def resize(image: UInt8Array, height: int, width: int) -> UInt8Array:
    """Resize uint8 HxW or HxWxC: exact area average downwards, half-pixel bilinear upwards, per axis.

    Returns:
        uint8 array of the same rank; the very same array when the size already matches.
    """
    if image.shape[:2] == (height, width):
        return image
    rows, columns = image.shape[:2]
    if rows % height == 0 and columns % width == 0:
        block = (rows // height) * (columns // width)
        return np.asarray(np.rint(_block_sums(image, rows // height, columns // width) / block), np.uint8)
    # int32 holds one axis (255 * 2 * 2**15 < 2**31), both need int64.
    by_row, row_unit = _resize_rows(image, height, np.int32)
    turned = np.ascontiguousarray(by_row.swapaxes(0, 1))
    total, column_unit = _resize_rows(turned, width, np.int64)
    # A quotient that is not a tie differs from one by at least 1 / (2 * units), far above the rounding of the
    # one float64 division.
    grey: UInt8Array = np.rint(total.swapaxes(0, 1) / (row_unit * column_unit)).astype(np.uint8, order="C")
    return grey


def _tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixel of each tile so that tiles cover `length`, spread evenly, sharing at least `overlap`."""
    if length == tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def place(frame_height: int, frame_width: int, spec: InputSpec, framing: Framing) -> Placement:
    """Say where the tiles of a frame of this size lie.

    Raises:
        InputError: mode `exact` with another size, or mode `tile` with a frame smaller than a tile.
    """
    size = (spec.height, spec.width)
    if framing.mode == "resize":
        return Placement(frame_height, frame_width, ((0, 0, frame_height, frame_width),))
    if framing.mode == "exact":
        if (frame_height, frame_width) != size:
            raise InputError(
                "the frame has the wrong size for framing `exact`",
                wanted=f"{spec.width} x {spec.height} pixels",
                got=f"{frame_width} x {frame_height}",
                next_step="set the camera's region of interest, or export with framing `resize`",
            )
        return Placement(frame_height, frame_width, ((0, 0, *size),))
    if frame_height < spec.height or frame_width < spec.width:
        raise InputError(
            "the frame is smaller than one tile",
            wanted=f"at least {spec.width} x {spec.height} pixels",
            got=f"{frame_width} x {frame_height}",
        )
    if framing.overlap >= min(size):
        raise InputError("tiles overlap by their whole size", wanted=f"< {min(size)}", got=framing.overlap)
    tops = _tile_starts(frame_height, spec.height, framing.overlap)
    lefts = _tile_starts(frame_width, spec.width, framing.overlap)
    return Placement(frame_height, frame_width, tuple((t, x, *size) for t in tops for x in lefts))


def frame_to_tiles(frame: Any, spec: InputSpec, framing: Framing) -> tuple[UInt8Array, Placement]:
    """Frame a camera image.

    Args:
        frame: uint8 HxW or HxWx3, never written to.

    Returns:
        tiles uint8 [T, height, width, channels] of raw pixels, and where they lie.
    """
    image = check_frame(frame)
    placement = place(image.shape[0], image.shape[1], spec, framing)
    pixels = to_channels(image, spec.channels)
    tiles = [
        resize(pixels[top : top + height, left : left + width], spec.height, spec.width).reshape(
            spec.height, spec.width, spec.channels
        )
        for top, left, height, width in placement.boxes
    ]
    return (tiles[0][None] if len(tiles) == 1 else np.stack(tiles)), placement


def encode(tile: UInt8Array, spec: InputSpec) -> npt.NDArray[Any]:
    """Put one tile [height, width, channels] into the file's dtype and layout, batch 1, contiguous."""
    batch = tile[None]
    if spec.layout == "nchw":
        batch = batch.reshape(spec.shape) if spec.channels == 1 else batch.transpose(0, 3, 1, 2)
    if spec.encoding == "identity":
        return np.ascontiguousarray(batch)
    if spec.encoding == "xor80":
        return np.ascontiguousarray(batch ^ np.uint8(0x80)).view(np.int8)
    centered = np.subtract(batch, np.float32(128), dtype=np.float32)
    centered *= np.float32(1 / 128)
    return np.ascontiguousarray(centered)


def mask_to_tiles(mask: npt.NDArray[Any], placement: Placement, spec: InputSpec) -> FloatArray:
    """Frame a ground-truth mask the way its image was framed.

    Returns:
        float32 [T, height, width] in 0..1: the share of each input pixel that is defective (area average, so
        that a thin scratch leaves a trace).
    """
    binary = (mask != 0).astype(np.uint8) * np.uint8(255)
    return np.stack(
        [
            resize(binary[t : t + h, x : x + w], spec.height, spec.width).astype(np.float32) / np.float32(255)
            for t, x, h, w in placement.boxes
        ]
    )
