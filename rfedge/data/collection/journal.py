"""The journal of a collection: one line for every recorded rollout, appended once its frames are on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rfedge.data.frames import Array
from rfedge.io.atomic import atomic_file
from rfedge.io.journal import write_line

JOURNAL: Final = "collection.journal"


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One language segment of a rollout."""

    task: str
    instruction: str  # a training paraphrase of the task, never the evaluation instruction
    num_frames: int  # 64 at most
    solved: bool  # whether the task was done after its last frame


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One rollout, stacked over its T frames."""

    task: str
    instruction: str
    seed: int  # with task, scene and options, everything that decides the episode
    success: bool  # whether every task was done that is in `segments`
    frames: Mapping[str, Array]  # arrays of `rfedge.data.frames`, stacked on axis 0
    segments: tuple[SegmentRecord, ...]  # the tasks in order; their frames lie end to end and are all frames there are


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One line of the journal; `num_frames` 0 means that every attempt failed."""

    task: str  # the one that was asked for, which is the first of a chain
    episode: int
    first_frame: int
    num_frames: int
    seed: int
    failed_attempts: int
    instruction: str
    segments: tuple[SegmentRecord, ...]  # the tasks in order; their frames lie end to end

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> EpisodeRecord:
        """Read the fields of one line; raises KeyError or TypeError when it is none of this version."""
        return cls(**{**fields, "segments": tuple(SegmentRecord(**segment) for segment in fields["segments"])})


def rewrite_journal(path: Path, entries: Iterable[EpisodeRecord]) -> None:
    """Replace the journal of a finished collection: in the order of the jobs, which no worker's speed decides."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"".join(write_line(asdict(entry)) for entry in entries))
