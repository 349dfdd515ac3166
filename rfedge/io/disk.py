"""Errors of a disk as one line: full, read-only, names too long; room that is looked for before the work, and the cache.

A full disk is met by whichever library writes, and each says it in its own way: `disk_error` finds it in all of them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

from rfedge.errors import ArtifactError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
# Paths, permissions and disks of the user; what is not here is a bug of ours.
_REFUSED: Final = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.EFBIG,
    errno.EIO,
    errno.ESTALE,
    errno.ENXIO,
    errno.ENODEV,
)
# safetensors and h5py hand the system's error over as text; torch and numpy only say that a write failed.
_FULL_TEXTS: Final = ("No space left on device", "os error 28", "errno = 28", "Disk quota exceeded")
_FAILED_WRITE_TEXTS: Final = ("file write failed", "requested and", "unexpected pos", "Can't write data", "enforce fail at")
_NO_ROOM_BYTES: Final = 1 << 16
_MB: Final = 1e6
_MAX_FILE_BYTES: Final = 1 << 28  # of records, settings and the like


def cache_folder(name: str) -> Path:
    """Return the folder `name` under the user's cache, `XDG_CACHE_HOME` or else `~/.cache`; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfedge" / name


def free_bytes(path: Path) -> int:
    """Return the free room where `path` lies or will lie."""
    status = os.statvfs(_existing(path))
    return status.f_bavail * status.f_frsize


def check_room(path: Path, needed_bytes: int, *, what: str) -> None:
    """Refuse to begin what could not be written in the end; `what` names it, such as "the checkpoint and its training
    state".

    Raises ArtifactError if the disk of `path`, which need not exist, is read-only or has less room.
    """
    folder = _existing(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        expected, remedy = "a folder of this user's on a disk that is not read-only", "Choose another place."
        raise ArtifactError(str(path), got=f"{folder}, which cannot be written", expected=expected, remedy=remedy)
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        expected, remedy = f"about {needed_bytes / _MB:.0f} MB for {what}", "Free some room, or choose another place."
        raise ArtifactError(str(path), got=f"{free / _MB:.0f} MB free", expected=expected, remedy=remedy)


def read_file(path: Path, limit_bytes: int | None = None) -> bytes:
    """Return the bytes of a file that others made, be it a device without end. Raises OSError for one with more."""
    limit_bytes = limit_bytes or _MAX_FILE_BYTES
    parts, size = [], 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            size += len(part)
            if size > limit_bytes:
                raise OSError(errno.EFBIG, f"more than {limit_bytes} bytes", str(path))
            parts.append(part)
    return b"".join(parts)


def read_json(path: Path) -> Any:
    """Return what is in a JSON file that others may have made; raises OSError or, where it is no JSON, ValueError."""
    content = read_file(path)
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("lists nested too deeply") from None


def disk_error(error: BaseException, path: Path | None) -> ArtifactError | None:
    """Return the one line about an error of the disk or a path, or of an error behind it; None if it is neither.

    Call it while what was written to `path` is there: a disk is then found full although the error does not say so.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return _full(_named(seen, path))
        refused = (*_REFUSED, errno.ENOENT) if path is not None else _REFUSED  # else what is missing may be a bug of ours
        if isinstance(seen, OSError) and seen.errno in refused and (seen.filename or path) is not None:
            return _refused(_named(seen, path), seen.strerror or str(seen))
        if any(text in str(seen) for text in _FULL_TEXTS):
            return _full(str(path or "output"))
        if isinstance(seen, ValueError) and "embedded null" in str(seen):
            return _refused(repr(str(path)) if path is not None else "path", "a NUL character")
        seen = seen.__cause__ or seen.__context__
    says_so = isinstance(error, (OSError, RuntimeError)) and any(text in str(error) for text in _FAILED_WRITE_TEXTS)
    if path is not None and says_so and free_bytes(path) < _NO_ROOM_BYTES:
        return _full(str(path))
    return None


def _named(error: OSError, path: Path | None) -> str:
    return str(path if error.filename is None else os.fsdecode(error.filename))


def _full(subject: str) -> ArtifactError:
    remedy = "Free some room or choose another place; what was there before is unchanged."
    return ArtifactError(subject, got="a full disk", expected="room for what is written", remedy=remedy)


def _refused(subject: str, got: str) -> ArtifactError:
    if len(subject) > 200:
        subject = f"{subject[:80]}... ({len(subject)} characters)"
    remedy = "Check the path, its permissions and the disk."
    return ArtifactError(subject, got=got[:1].lower() + got[1:], expected="a path that this user may use", remedy=remedy)


def _existing(path: Path) -> Path:
    """Return the nearest folder above `path` that exists; raises ArtifactError for a path that can be none."""
    try:
        folder = path.absolute()
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
    except (OSError, ValueError) as error:
        raise disk_error(error, path) or error from None
    return folder
