"""Write files and folders so that a kill at any moment leaves either the old thing or the new one, never half of one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from rfedge.errors import ArtifactError, RfedgeError
from rfedge.io.disk import disk_error

# A leftover of a killed process carries this suffix, so that readers and users can tell it from a result.
TEMPORARY_SUFFIX = ".partial"
# Flags of renameat2(2), which Python does not know: fail if the target exists, or swap the two in one step.
_NO_REPLACE: Final = 1
_EXCHANGE: Final = 2
_AT_CWD: Final = -100


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed, on error removed. Raises
    ArtifactError if the disk is full or cannot be written.
    """
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary = _temporary(path)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode & 0o777  # what the user's umask left
        try:
            with _disk_errors(path):  # while what was written still fills the disk
                yield temporary
                temporary.chmod(mode)  # some libraries replace the file by a private one
                _sync_file(temporary)
            temporary.replace(path)
            _sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it is synced and renamed to `path`, on error removed.

    A second process that writes it is refused, unless all write the same content (`shared`), as into a cache. Raises
    ArtifactError if `path` exists, now or at the end, and `overwrite` is false, or the disk is full or cannot be written.
    """
    with _disk_errors(path):
        if path.exists() and not overwrite:
            raise _exists(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.nullcontext() if shared else claimed(path):
            _remove_leftovers(path)
            temporary = _temporary(path)
            temporary.mkdir()
            mode = temporary.stat().st_mode & 0o7777
            try:
                with _disk_errors(path):
                    yield temporary
                    _share(temporary, mode)
                    sync_tree(temporary)
                _move(temporary, path, overwrite=overwrite)
                _sync_directory(path.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        translated = None if isinstance(error, RfedgeError) else disk_error(error, path)
        if translated is None:
            raise
        raise translated from error


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from writing `path` inside the block; the lock, a file beside it, ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            expected, remedy = "one at a time", "Wait for it, or choose another --output."
            raise ArtifactError(str(path), got="another process that writes it", expected=expected, remedy=remedy) from None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                break
        os.close(descriptor)  # its owner removed it between our two calls
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _move(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give the finished folder its name; what lay there, if it may be replaced, is in `temporary` then."""
    if not overwrite:
        if not _rename(temporary, path, _NO_REPLACE):
            if path.exists():
                raise _exists(path)
            temporary.replace(path)
        return
    if not path.exists():
        temporary.replace(path)
    elif not _rename(temporary, path, _EXCHANGE):
        # Two renames instead of remove-then-rename: the old result survives until the new one has its name.
        retired = _temporary(path)
        retired.mkdir()
        path.replace(retired / path.name)
        temporary.replace(path)
        shutil.rmtree(retired)


def _rename(source: Path, target: Path, flags: int) -> bool:
    """Rename in one step; return false where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_CWD, os.fsencode(source), _AT_CWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        raise _exists(target)
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number), str(target))


def _exists(path: Path) -> ArtifactError:
    remedy = "Pass --overwrite or another --output."
    return ArtifactError(str(path), got="an existing path", expected="a free name", remedy=remedy)


def _share(root: Path, mode: int) -> None:
    """Give folders `mode` and files its part: what libraries make, safetensors for one, is private to the user."""
    for folder, _, names in os.walk(root):
        Path(folder).chmod(mode)
        for name in names:
            (Path(folder) / name).chmod(mode & 0o666)


def _temporary(path: Path) -> Path:
    # The process id tells a leftover of a killed process from the work of a running one.
    return path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _remove_leftovers(path: Path) -> None:
    """Remove what killed writers of the same `path` left behind."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}-*{TEMPORARY_SUFFIX}"):
        owner = leftover.name[len(f".{path.name}-") :].split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def sync_tree(root: Path) -> None:
    """Flush every file and folder below `root` to disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            _sync_file(Path(folder) / name)
        _sync_directory(Path(folder))


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
