"""Output folders and files that are either whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from edge.errors import InputError


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `path` by one rename when the block succeeds.

    On an error nothing remains. With `replace`, an existing folder gives way at the very end.

    Raises:
        InputError: `path` exists already (and not `replace`), or its parent cannot be written.
    """
    path = Path(path)
    if not replace:
        refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o755)  # mkdtemp makes it private
    except OSError as exc:
        raise InputError(f"cannot create {path}", got=exc.strerror, next_step="choose another --out") from exc
    try:
        yield temporary
        if replace and path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / path.name)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_existing(path: Path) -> None:
    """Raise InputError when `path` is there already."""
    if Path(path).exists():
        raise InputError(
            f"{path} exists already",
            wanted="a path that is not there yet",
            next_step="remove it or choose another --out",
        )


@contextmanager
def new_file(path: Path) -> Iterator[IO[str]]:
    """Yield a text stream that becomes the file `path` when the block succeeds; on an error nothing changes.

    Raises:
        InputError: `path` cannot be written there.
    """
    path = Path(path)
    handle, name = _temporary_sibling(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _take_place(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _temporary_sibling(path: Path) -> tuple[int, str]:
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as exc:
        raise InputError(f"cannot write {path}", got=exc.strerror, next_step="choose another path") from exc


def _take_place(name: str, path: Path) -> None:
    """Rename the temporary file `name` to `path`, and make that last."""
    os.chmod(name, 0o644)  # noqa: PTH101
    os.replace(name, path)  # noqa: PTH105
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, also after a power cut.

    Raises:
        InputError: `path` cannot be written there.
    """
    path = Path(path)
    handle, name = _temporary_sibling(path)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _take_place(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def json_bytes(data: Any) -> bytes:
    """JSON text in UTF-8: two-space indent, NaN as null, newline at the end."""
    return (json.dumps(jsonable(data), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, data: Any) -> None:
    """Write `json_bytes` atomically."""
    write_atomically(path, json_bytes(data))


def jsonable(value: Any) -> Any:
    """Replace what JSON lacks: NaN and infinities become null, numpy scalars and paths plain values."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
