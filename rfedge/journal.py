"""A journal of JSON lines: what a long run has finished, so that a killed one goes on where it stopped.

The first line holds the arguments that decide the run; each further line is one finished piece of it, on disk before the
next one begins. A lock on the file keeps a second process out and ends with the process that holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from rfedge.errors import ArtifactError, ConfigError, explain

__all__ = ["Journal", "claim", "open_journal", "read_journal"]

_ARGUMENTS: Final = "arguments"


class Journal:
    """An open journal; made by `open_journal`.

    Attributes:
        records: what was in it when it was opened, in the order of writing.
    """

    def __init__(self, file: BinaryIO, records: tuple[dict[str, Any], ...]) -> None:
        """Keep the open file and what was read from it."""
        self._file = file
        self.records = records
        self._has_grown = False

    @property
    def is_empty(self) -> bool:
        """Whether it holds no record yet."""
        return not self.records and not self._has_grown

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is on disk."""
        self._has_grown = True
        _append(self._file, record)


@contextlib.contextmanager
def open_journal(path: Path, arguments: Mapping[str, Any]) -> Iterator[Journal]:
    """Open or begin the journal of the run that `arguments` decide; a half-written last line is cut off.

    Without a record nothing stays behind.

    Args:
        path: the file; its folder must be new, empty or that of the same run.
        arguments: names and JSON values.

    Raises:
        ConfigError: the folder holds something else or a run with other arguments, or another process has it open.
        ArtifactError: a whole line cannot be read.
    """
    _refuse_other_content(path)
    is_new_folder = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        claim(file, path.parent, "a run that is still going on")
        lines = _read_whole_lines(file, path)
        if len(lines) > 1:
            _compare(path, lines[0], arguments)
        else:
            file.truncate(0)
            _append(file, {_ARGUMENTS: arguments})
        journal = Journal(file, tuple(lines[1:]))
        try:
            yield journal
        finally:
            if journal.is_empty:
                path.unlink()
                if is_new_folder:
                    with contextlib.suppress(OSError):  # somebody put something else there
                        path.parent.rmdir()


def read_journal(path: Path) -> tuple[dict[str, Any], ...]:
    """Return the records of a journal without changing it.

    Raises:
        ArtifactError: the file cannot be read, or a whole line is no JSON object.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ArtifactError(
            explain(str(path), got=error.strerror or str(error), expected="a journal", remedy="Repeat the run.")
        ) from None
    return tuple(_parse_whole_lines(lines, path)[0][1:])


def claim(file: BinaryIO, folder: Path, owner: str) -> None:
    """Lock an open file until it is closed or its process ends.

    Raises:
        ConfigError: another process holds it; the text says that `folder` belongs to `owner`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(
            explain(
                f"output {folder}",
                got=owner,
                expected="one process per folder",
                remedy="Wait for it, or choose another --output.",
            )
        ) from None


def _append(file: BinaryIO, record: Mapping[str, Any]) -> None:
    file.write(json.dumps(record).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _refuse_other_content(path: Path) -> None:
    folder = path.parent
    if folder.exists() and not path.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            explain(
                f"output {folder}",
                got=f"something without a {path.name}",
                expected="an empty or new folder",
                remedy="Choose another --output.",
            )
        )


def _read_whole_lines(file: BinaryIO, path: Path) -> list[dict[str, Any]]:
    file.seek(0)
    lines, whole_bytes = _parse_whole_lines(file, path)
    file.truncate(whole_bytes)
    return lines


def _parse_whole_lines(texts: Iterable[bytes], path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects, and how many bytes they take: what follows them is a line that was not written to its end."""
    lines: list[dict[str, Any]] = []
    whole_bytes = 0
    for text in texts:
        if not text.endswith(b"\n"):
            break
        try:
            lines.append(dict(json.loads(text)))
        except (ValueError, TypeError):
            raise ArtifactError(
                explain(
                    f"line {len(lines) + 1} of {path}",
                    got="unreadable text",
                    expected="a JSON object",
                    remedy="Repair or remove the file, or choose another --output.",
                )
            ) from None
        whole_bytes += len(text)
    return lines, whole_bytes


def _compare(path: Path, header: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    before = header.get(_ARGUMENTS, {})
    now = json.loads(json.dumps(arguments))  # tuples are lists in the file
    for name in (*now, *(name for name in before if name not in now)):
        if before.get(name) != now.get(name):
            raise ConfigError(
                explain(
                    f"{name.replace('_', ' ')} of the run in {path.parent}",
                    got=now.get(name),
                    expected=f"{before.get(name)}, with which it was started",
                    remedy="Repeat the arguments to go on, or choose another --output.",
                )
            )
