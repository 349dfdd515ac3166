"""The journal of a collection: one line for every recorded rollout, appended once its frames are on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rfedge.atomic import atomic_file
from rfedge.errors import ConfigError, explain
from rfedge.journal import claim

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
    def from_json(cls, text: str | bytes) -> EpisodeRecord:
        """Read one line; raises ValueError, KeyError or TypeError when it is not one of this version."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "segments": tuple(SegmentRecord(**segment) for segment in fields["segments"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@contextmanager
def open_journal(path: Path) -> Iterator[tuple[Callable[[EpisodeRecord], None], dict[tuple[str, int], EpisodeRecord]]]:
    """Yield a function that appends one record, and the records already there; a half-written last line is cut off.

    Raises:
        ConfigError: another process has it open, or it was written by another version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        claim(file, path.parent, "a collection that is still running")
        file.seek(0)
        done: dict[tuple[str, int], EpisodeRecord] = {}
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            entry = _read_line(path, line)
            done[entry.task, entry.episode] = entry
            whole += len(line)
        file.truncate(whole)

        def append(entry: EpisodeRecord) -> None:
            file.write(f"{entry.to_json()}\n".encode())
            file.flush()

        yield append, done


def _read_line(path: Path, line: bytes) -> EpisodeRecord:
    try:
        return EpisodeRecord.from_json(line)
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            explain(
                f"file {path}",
                got="a line that this version did not write",
                expected="one record a line",
                remedy="Choose another --output, or collect again into an empty folder.",
            )
        ) from None


def rewrite_journal(path: Path, entries: Iterable[EpisodeRecord]) -> None:
    """Replace the journal of a finished collection: in the order of the jobs, which no worker's speed decides."""
    with atomic_file(path) as temporary:
        temporary.write_text("".join(f"{entry.to_json()}\n" for entry in entries))
