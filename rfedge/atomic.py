"""Write files and folders so that a kill at any moment leaves either the old thing or the new one, never half of one."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rfedge.errors import ArtifactError, explain

__all__ = ["TEMPORARY_SUFFIX", "atomic_directory", "atomic_file", "sync_tree"]

# A leftover of a killed process carries this suffix, so that readers and users can tell it from a result.
TEMPORARY_SUFFIX = ".partial"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed, on error removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=TEMPORARY_SUFFIX)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private to the user
        _sync_file(temporary)
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it is synced and renamed to `path`, on error removed.

    Raises:
        ArtifactError: `path` exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise ArtifactError(
            explain(
                str(path), got="an existing path", expected="a free name", remedy="Pass --overwrite or another --output."
            )
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=TEMPORARY_SUFFIX))
    try:
        yield temporary
        _share(temporary)
        sync_tree(temporary)
        if path.exists():
            # Two renames instead of remove-then-rename: the old result survives until the new one has its name.
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=TEMPORARY_SUFFIX))
            path.replace(retired / path.name)
            temporary.replace(path)
            shutil.rmtree(retired)
        else:
            temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _share(root: Path) -> None:
    """Give files and folders the modes that others write with: mkdtemp, and safetensors, make theirs private to the user."""
    for folder, _, names in os.walk(root):
        Path(folder).chmod(0o755)
        for name in names:
            (Path(folder) / name).chmod(0o644)


def _prefix(path: Path) -> str:
    # The process id tells a leftover of a killed process from the work of a running one.
    return f".{path.name}-{os.getpid()}-"


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
