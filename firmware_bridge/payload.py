"""The artifact inside a bundle: one plain tar, the same bytes for the same artifact, read strictly.

RAUC images are single files, and a tar is the one that stock RAUC can install into a slot too. It is signed,
yet it is unpacked as if a stranger had sent it: regular files only, inside the folder, each listed in the
manifest.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from edge.artifact import MANIFEST, Artifact
from firmware_bridge.errors import FlashError

MAX_FILES = 200
MAX_DEPTH = 8


def pack(artifact: Artifact, file: Path) -> None:
    """Write `artifact`'s manifest and listed files, and nothing else from its folder, into the tar `file`."""
    names = sorted([MANIFEST, *(str(entry["path"]) for entry in artifact.manifest["files"])])
    with tarfile.open(file, "w:", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            path = artifact.path / name
            member = tarfile.TarInfo(name)
            member.size = path.stat().st_size
            member.mode = 0o644
            with path.open("rb") as stream:
                tar.addfile(member, stream)


def unpack(file: Path, folder: Path) -> None:
    """Unpack the tar `file` into the new folder `folder` and flush every byte to the disk.

    Raises:
        FlashError: no plain tar, truncated, or with anything but regular files inside the folder.
    """
    if file.is_symlink() or not file.is_file():
        raise FlashError("the bundle carries no artifact", wanted=f"a regular file {file.name}")
    folder.mkdir(mode=0o755)
    seen: set[str] = set()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.name in seen or len(seen) == MAX_FILES:
                    raise _refused(member, f"each file once, at most {MAX_FILES}")
                seen.add(member.name)
                _unpack_one(tar, member, folder)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as exc:
        raise FlashError(
            "the bundle's artifact is not a readable tar", got=f"{type(exc).__name__}: {exc}"
        ) from exc
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as exc:
        raise FlashError("the bundle's artifact has one path for two things", got=exc.filename) from exc
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync(path)
    sync(folder)


def _unpack_one(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    path = PurePosixPath(member.name)
    inside = path.parts and not path.is_absolute() and ".." not in path.parts and len(path.parts) <= MAX_DEPTH
    if not inside or "\\" in member.name or "\0" in member.name or path.as_posix() != member.name:
        raise _refused(member, "a plain relative path")
    stream = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if stream is None:
        raise _refused(member, "regular files only")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with stream, os.fdopen(handle, "wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
        if out.tell() != member.size:
            raise _refused(member, f"{member.size} bytes")


def _refused(member: tarfile.TarInfo, wanted: str) -> FlashError:
    return FlashError(
        "the bundle's artifact holds something that does not belong there",
        wanted=wanted,
        got=repr(member.name),
        next_step="do not install it; ask whoever signed it",
    )


def check_listed(artifact: Artifact) -> None:
    """Raise FlashError when the folder of `artifact` holds a file that its manifest does not list."""
    listed = {MANIFEST, *(str(entry["path"]) for entry in artifact.manifest["files"])}
    for path in sorted(artifact.path.rglob("*")):
        name = path.relative_to(artifact.path).as_posix()
        if not path.is_dir() and name not in listed:
            raise FlashError("the bundle's artifact holds a file that its manifest does not list", got=name)


def sync(path: Path) -> None:
    """Flush a folder's entries (or a file's bytes) to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
