"""A journal of JSON lines: what a long run has finished, so that a killed one goes on where it stopped.

The first line holds the arguments that decide the run. Every line ends with a checksum of itself, so that a changed byte is
no other record. A lock on the file keeps a second process out and ends with the process that holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

from rfedge.errors import ArtifactError, ConfigError
from rfedge.io.disk import disk_error, read_file

_ARGUMENTS: Final = "arguments"
_CHECKED: Final = re.compile(rb'(\{.*), "crc32": "([0-9a-f]{8})"\}\n', re.DOTALL)


@dataclass(slots=True, eq=False)
class Journal:
    """An open journal; made by `open_journal`."""

    file: FileIO
    path: Path
    records: tuple[dict[str, Any], ...]  # what was in it when it was opened, in the order of writing
    has_grown: bool = False

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is on disk."""
        self.has_grown = True
        append_line(self.file, self.path, record)


@contextlib.contextmanager
def open_journal(path: Path, arguments: Mapping[str, Any]) -> Iterator[Journal]:
    """Open or begin the journal of the run that `arguments` decide; a last line that was cut off and a journal without a
    record go.

    Raises:
        ConfigError: the folder holds something else or a run with other arguments, or another process has it open.
        ArtifactError: a whole line is not as it was written, or the disk is full or cannot be written.
    """
    refuse_other_content(path, f"something without a {path.name}")
    is_new_folder = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_lines(path, "a run that is still going on") as (file, lines):
        if len(lines) > 1:
            before = lines[0].get(_ARGUMENTS)
            if not isinstance(before, dict):
                expected, remedy = "those of the run", "Choose another --output."
                raise ArtifactError(f"line 1 of {path}", got="no arguments", expected=expected, remedy=remedy)
            compare_arguments(before, arguments, f"the run in {path.parent}")
        else:
            file.truncate(0)
            try:
                append_line(file, path, {_ARGUMENTS: arguments})
            except ArtifactError:
                path.unlink()
                raise
        journal = Journal(file, path, tuple(lines[1:]))
        try:
            yield journal
        finally:
            if not (journal.records or journal.has_grown):
                path.unlink()
                if is_new_folder:
                    with contextlib.suppress(OSError):  # somebody put something else there
                        path.parent.rmdir()


def read_journal(path: Path) -> tuple[dict[str, Any], ...]:
    """Return the records of a journal without changing it. Raises ArtifactError if a whole line is no JSON object."""
    try:
        content = read_file(path)
    except OSError as error:
        remedy = "Repeat the run."
        raise ArtifactError(str(path), got=error.strerror or str(error), expected="a journal", remedy=remedy) from None
    return tuple(_parse_whole_lines(content, path)[0][1:])


@contextlib.contextmanager
def open_lines(path: Path, owner: str) -> Iterator[tuple[FileIO, list[dict[str, Any]]]]:
    """Lock a file of lines and yield it and its lines, a half-written last one cut off; its folder belongs to `owner`."""
    with path.open("a+b", buffering=0) as file:  # a buffer would hold what found no room, and try again when it is closed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            remedy = "Wait for it, or choose another --output."
            raise ConfigError(f"output {path.parent}", got=owner, expected="one process per folder", remedy=remedy) from None
        file.seek(0)
        lines, whole_bytes = _parse_whole_lines(file.read(), path)
        file.truncate(whole_bytes)
        yield file, lines


def write_line(record: Mapping[str, Any]) -> bytes:
    """Return one line: a JSON object whose last field is the CRC-32 of what stands before it."""
    text = json.dumps(record).encode()[:-1]
    return text + f', "crc32": "{zlib.crc32(text):08x}"}}\n'.encode()


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the record in one line of `write_line`; ValueError for any other line."""
    checked = _CHECKED.fullmatch(line)
    if checked is None:
        raise ValueError("no checksum, or text that is no record")
    if f"{zlib.crc32(checked[1]):08x}".encode() != checked[2]:
        raise ValueError("another checksum than its own")
    return dict(json.loads(checked[1] + b"}"))


def append_line(file: FileIO, path: Path, record: Mapping[str, Any], *, sync: bool = True) -> None:
    """Write one line of `write_line` to the end of an unbuffered file, all of it or none."""
    line, begin = write_line(record), file.seek(0, os.SEEK_END)
    try:
        while line:  # a part of it may find room, and the next call none
            line = line[file.write(line) :]
        if sync:
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            file.truncate(begin)
        raise disk_error(error, path) or error from error


def refuse_other_content(path: Path, got: str) -> None:
    """Raise ConfigError where the folder of a journal that is not there yet holds something else."""
    folder = path.parent
    if folder.exists() and not path.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        expected, remedy = "an empty or new folder", "Choose another --output."
        raise ConfigError(f"output {folder}", got=got, expected=expected, remedy=remedy)


def compare_arguments(before: Mapping[str, Any], arguments: Mapping[str, Any], whose: str) -> None:
    """Raise ConfigError at the first argument that is not the one with which `whose` was started."""
    now = json.loads(json.dumps(arguments))  # tuples are lists in the file
    for name in (*now, *(name for name in before if name not in now)):
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"{name.replace('_', ' ')} of {whose}",
                got=now.get(name),
                expected=f"{before.get(name)}, with which it was started",
                remedy="Repeat the arguments to go on, or choose another --output.",
            )


def _parse_whole_lines(content: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects, and how many bytes they take: what follows them is a line that was not written to its end."""
    lines: list[dict[str, Any]] = []
    whole_bytes = 0
    for text in content.split(b"\n")[:-1]:
        try:
            lines.append(parse_line(text + b"\n"))
        except (ValueError, TypeError, RecursionError) as error:
            raise ArtifactError(
                f"line {len(lines) + 1} of {path}",
                got=error,
                expected="a record as it was written",
                remedy="Remove this line and those behind it, or choose another --output.",
            ) from None
        whole_bytes += len(text) + 1
    return lines, whole_bytes
