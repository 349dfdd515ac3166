"""The journal of a collection: one line for every recorded rollout, appended once its frames are on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rfedge.errors import ConfigError
from rfedge.io.atomic import atomic_file
from rfedge.io.journal import append_line, claim, parse_line, write_line

__all__ = ["JOURNAL", "EpisodeRecord", "SegmentRecord", "open_journal", "rewrite_journal"]

JOURNAL: Final = "collection.journal"


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One language segment of a rollout.

    Attributes:
        solved: whether the task was done after its last frame.
    """

    task: str
    instruction: str
    num_frames: int
    solved: bool


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One line of the journal; `num_frames` 0 means that every attempt failed.

    Attributes:
        task: the one that was asked for, which is the first of a chain.
        seed: of the last attempt.
        failed_attempts: recordings thrown away.
        instruction: of the first segment.
        segments: the tasks in order; their frames lie end to end.
    """

    task: str
    episode: int
    first_frame: int
    num_frames: int
    seed: int
    failed_attempts: int
    instruction: str
    segments: tuple[SegmentRecord, ...]

    @classmethod
    def from_line(cls, line: bytes) -> EpisodeRecord:
        """Read one line; raises ValueError, KeyError or TypeError when it is not one of this version, or was changed."""
        fields: dict[str, Any] = parse_line(line)
        return cls(**{**fields, "segments": tuple(SegmentRecord(**segment) for segment in fields["segments"])})

    def to_line(self) -> bytes:
        return write_line(asdict(self))


@contextmanager
def open_journal(path: Path) -> Iterator[tuple[Callable[[EpisodeRecord], None], dict[tuple[str, int], EpisodeRecord]]]:
    """Yield a function that appends one record, and the records already there; a half-written last line is cut off.

    Raises:
        ConfigError: another process has it open, or it was written by another version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        claim(file, path.parent, "a collection that is still running")
        file.seek(0)
        done: dict[tuple[str, int], EpisodeRecord] = {}
        whole = 0
        for text in file.read().split(b"\n")[:-1]:
            entry = _read_line(path, text + b"\n")
            done[entry.task, entry.episode] = entry
            whole += len(text) + 1
        file.truncate(whole)

        def append(entry: EpisodeRecord) -> None:
            append_line(file, path, asdict(entry), sync=False)

        yield append, done


def _read_line(path: Path, line: bytes) -> EpisodeRecord:
    try:
        return EpisodeRecord.from_line(line)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(
            f"file {path}",
            got="a line that this version did not write, or that was changed",
            expected="one record a line",
            remedy="Choose another --output, or collect again into an empty folder.",
        ) from None


def rewrite_journal(path: Path, entries: Iterable[EpisodeRecord]) -> None:
    """Replace the journal of a finished collection: in the order of the jobs, which no worker's speed decides."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"".join(entry.to_line() for entry in entries))
