"""Reading image files, and writing PNG.

`.npy` and binary `.pgm`/`.ppm` need numpy alone; everything else is read by Pillow when it is there. PNG is
written with the standard library, so an overlay costs a camera no dependency.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np

from edge.errors import BackendUnavailableError, EdgeError, InputError
from edge.preprocess import UInt8Array

SUFFIXES = (".npy", ".pgm", ".ppm", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def read_image(path: Path) -> UInt8Array:
    """Read an image as uint8, HxW (grey) or HxWx3 (RGB).

    Raises:
        InputError: no such file, damaged, or not 8 bits a channel.
        BackendUnavailableError: the format needs Pillow, which is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no image {path}")
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix.lower() in (".pgm", ".ppm"):
            array = _read_netpbm(path.read_bytes())
        else:
            array = _read_with_pillow(path)
    except EdgeError:
        raise
    except Exception as exc:  # decoders raise a dozen kinds on damaged bytes
        raise InputError(f"{path} cannot be read as an image", got=f"{type(exc).__name__}: {exc}") from exc
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or not array.size
        or array.shape[2:] not in ((), (3,))
    ):
        raise InputError(
            f"{path} is not an 8-bit grey or RGB image",
            wanted="uint8, HxW or HxWx3",
            got=f"{array.dtype} of shape {array.shape}",
        )
    image: UInt8Array = array
    return image


def _read_netpbm(data: bytes) -> UInt8Array:
    header = re.match(
        rb"(P[56])(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)\s", data
    )
    if header is None or int(header[4]) != 255:
        raise ValueError("not a binary 8-bit PGM or PPM")
    width, height, channels = int(header[2]), int(header[3]), 3 if header[1] == b"P6" else 1
    pixels = np.frombuffer(data, np.uint8, count=width * height * channels, offset=header.end())
    return pixels.reshape((height, width) if channels == 1 else (height, width, 3))


def _read_with_pillow(path: Path) -> UInt8Array:
    try:
        from PIL import Image
    except ImportError as exc:
        raise BackendUnavailableError(
            f"{path.suffix} images need Pillow, which is not installed",
            wanted="a .npy, .pgm or .ppm file, or Pillow",
            next_step='pip install "edgeqc[images]"',
        ) from exc
    with Image.open(path) as image:
        if image.mode in ("1", "P", "LA", "RGBA", "CMYK", "YCbCr"):
            image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        return np.array(image)


def write_png(path: Path, image: UInt8Array) -> None:
    """Write uint8 HxW or HxWx3 as PNG."""
    Path(path).write_bytes(png_bytes(image))


def png_bytes(image: UInt8Array) -> bytes:
    """Encode uint8 HxW or HxWx3 as PNG (PNG specification, 3rd edition; filter type 0)."""
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image).reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw, 6))
        + chunk(b"IEND", b"")
    )
