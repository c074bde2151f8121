"""Where frames come from: an image file, a folder of images, or a data set folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.errors import InputError
from edge.images import SUFFIXES
from edge.samples import TABLE, read_samples


@dataclass(frozen=True)
class Picture:
    """An image file of a source.

    Attributes:
        name: its path relative to the source, with forward slashes.
        path: the file.
    """

    name: str
    path: Path


def find_pictures(source: Path, limit: int | None = None) -> list[Picture]:
    """List the images of a source, in a stable order.

    Args:
        source: an image file; a data set folder (the images of its table, in its order, masks left out);
            or any other folder (all image files below it, sorted, hidden ones left out).
        limit: the first so many.

    Raises:
        InputError: nothing there, or no image in it.
    """
    if source.is_file():
        pictures = [Picture(source.name, source)]
    elif (source / TABLE).is_file():
        pictures = [Picture(sample.id, sample.image) for sample in read_samples(source)]
    elif source.is_dir():
        names = sorted(
            file.relative_to(source).as_posix() for file in source.rglob("*") if _is_image(file, source)
        )
        pictures = [Picture(name, source / name) for name in names]
    else:
        raise InputError(f"there is no source {source}", wanted="an image file, or a folder with images")
    if not pictures:
        raise InputError(f"{source} has no image", wanted=f"files ending in {', '.join(SUFFIXES)}")
    return pictures[:limit]


def _is_image(file: Path, source: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
    return file.suffix.lower() in SUFFIXES and not hidden and file.is_file()
