"""Collects a CALVIN dataset from anything that can record an episode: resumable, and the same for any number of workers.

Every (task, episode) pair owns 64 frame numbers and a row of seeds that follow from the arguments alone, so neither the
order of work nor a restart shows in the result; the price is gaps between episodes, which the format allows. An episode
counts once its line is in the journal, so a kill loses at most the episodes under way.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from rfedge.atomic import atomic_file
from rfedge.data.calvin import COLLECTION_RECORD, CalvinDataset, Segment
from rfedge.data.frames import Array, frame_name
from rfedge.data.writer import write_episode, write_index
from rfedge.errors import ConfigError, DatasetError, explain

__all__ = [
    "FRAMES_PER_SLOT",
    "CollectionRequest",
    "CollectionResult",
    "EpisodeRecord",
    "RecordedEpisode",
    "TaskSummary",
    "attempt_seed",
    "collect",
]

# CALVIN's language segments have at most 64 frames; a longer episode would run into its neighbour's numbers.
FRAMES_PER_SLOT: Final = 64
_JOURNAL: Final = "collection.journal"
_SPLIT: Final = "training"
_SCHEMA_VERSION: Final = 1


class RecordedEpisode(Protocol):
    """What `record` returns; `rfedge.envs.demonstrations.Episode` is one."""

    @property
    def instruction(self) -> str: ...
    @property
    def success(self) -> bool: ...
    @property
    def frames(self) -> Mapping[str, Array]: ...


Record = Callable[[str, int], RecordedEpisode]


@dataclass(frozen=True, slots=True)
class CollectionRequest:
    """Everything that decides a collection.

    Attributes:
        tasks: names, in the order of their frame numbers.
        episodes_per_task: successful episodes wanted of each.
        seed: every episode's seed is drawn from it.
        scene: letter of the CALVIN scene.
        max_attempts: seeds tried for one episode before it is given up.
    """

    tasks: tuple[str, ...]
    episodes_per_task: int
    seed: int = 0
    scene: str = "D"
    max_attempts: int = 10

    def check(self) -> None:
        """Raise ConfigError when there is nothing to do or a task is named twice."""
        for name, value in (("episodes per task", self.episodes_per_task), ("max attempts", self.max_attempts)):
            if value < 1:
                raise ConfigError(explain(name, got=value, expected="at least 1", remedy="Give a positive whole number."))
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(
                explain("tasks", got=list(self.tasks), expected="at least one, each once", remedy="Name each task once.")
            )
        if self.seed < 0:
            raise ConfigError(explain("seed", got=self.seed, expected="0 or more", remedy="Give a whole number from 0 on."))


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One line of the journal; `num_frames` 0 means that every attempt failed.

    Attributes:
        seed: of the last attempt.
        failed_attempts: recordings thrown away.
    """

    task: str
    episode: int
    first_frame: int
    num_frames: int
    seed: int
    failed_attempts: int
    instruction: str


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """Totals of one task; `missing` episodes were given up after every attempt failed."""

    task: str
    episodes: int
    frames: int
    retries: int
    missing: int

    @property
    def mean_frames(self) -> float:
        return self.frames / self.episodes if self.episodes else 0.0


@dataclass(frozen=True, slots=True)
class CollectionResult:
    """What now lies in `folder`; `num_resumed` episodes were there before."""

    folder: Path
    tasks: tuple[TaskSummary, ...]
    num_resumed: int


@dataclass(frozen=True, slots=True)
class _Attempts:
    episode: RecordedEpisode | None
    seed: int
    num_failed: int


def attempt_seed(seed: int, task: str, episode: int, attempt: int) -> int:
    """Seed of one recording; it depends on these four alone, so more tasks or episodes leave the others as they were."""
    return int(np.random.SeedSequence([seed, zlib.crc32(task.encode()), episode, attempt]).generate_state(1)[0] >> 1)


def collect(
    record: Record,
    request: CollectionRequest,
    output: Path,
    *,
    workers: int = 1,
    versions: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> CollectionResult:
    """Record every episode of `request` that is not there yet, then write the index files.

    Args:
        record: called as (task, seed); with `workers` above 1 it must be a top-level function or a partial of one.
        request: what to collect.
        output: the dataset's root; frames go into `training/`.
        workers: processes that record; the result does not depend on it.
        versions: names and versions to keep in collection.json.
        on_progress: called as (episodes done, episodes in all, task).

    Raises:
        ConfigError: `output` holds another collection or something else, another process collects into it, or an
            argument is out of range.
        DatasetError: no episode at all succeeded, or one has more than 64 frames or arrays that are not in the format.
    """
    request.check()
    if workers < 1:
        raise ConfigError(explain("workers", got=workers, expected="at least 1", remedy="Give a positive whole number."))
    document = {
        "schema_version": _SCHEMA_VERSION,
        "complete": False,
        "arguments": {**asdict(request), "tasks": list(request.tasks)},
        "versions": dict(versions or {}),
    }
    _refuse_other_content(output)
    jobs = [(task, episode) for task in request.tasks for episode in range(request.episodes_per_task)]
    folder = output / _SPLIT
    with _open_journal(output / _JOURNAL) as (journal, done):
        _claim(output, document, started=bool(done))
        num_resumed = len(done)
        open_jobs = [job for job in jobs if job not in done]
        for (task, episode), attempts in _record_all(record, request, open_jobs, workers):
            first = jobs.index((task, episode)) * FRAMES_PER_SLOT
            entry = _store(folder, first, task, episode, attempts)
            journal(entry)
            done[task, episode] = entry
            if on_progress is not None:
                on_progress(len(done), len(jobs), task)
        entries = [done[job] for job in jobs]
        _finish(output, folder, request, document, entries)
    return CollectionResult(folder, _summaries(request, entries), num_resumed)


def _refuse_other_content(output: Path) -> None:
    if output.exists() and not (output / _JOURNAL).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            explain(
                f"output {output}",
                got="something other than a collection",
                expected="an empty or new folder",
                remedy="Choose another --output.",
            )
        )


def _claim(output: Path, document: dict[str, Any], *, started: bool) -> None:
    """Record the arguments, or, once an episode is there, make sure that it was recorded with the same ones."""
    path = output / COLLECTION_RECORD
    if not started:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n")
        return
    try:
        before = dict(json.loads(path.read_bytes())["arguments"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            explain(f"file {path}", got="unreadable text", expected="a collection record", remedy="Choose another --output.")
        ) from None
    for name, value in document["arguments"].items():
        if before.get(name) != value:
            raise ConfigError(
                explain(
                    f"{name.replace('_', ' ')} of the collection in {output}",
                    got=value,
                    expected=f"{before.get(name)}, with which it was started",
                    remedy="Repeat the arguments to go on, or choose another --output.",
                )
            )


@contextmanager
def _open_journal(path: Path) -> Iterator[tuple[Callable[[EpisodeRecord], None], dict[tuple[str, int], EpisodeRecord]]]:
    """Yield a function that appends one record, and the records already there; a half-written last line is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                explain(
                    f"output {path.parent}",
                    got="a collection that is still running",
                    expected="one process per folder",
                    remedy="Wait for it, or choose another --output.",
                )
            ) from None
        file.seek(0)
        done: dict[tuple[str, int], EpisodeRecord] = {}
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            entry = EpisodeRecord(**json.loads(line))
            done[entry.task, entry.episode] = entry
            whole += len(line)
        file.truncate(whole)

        def append(entry: EpisodeRecord) -> None:
            file.write(json.dumps(asdict(entry)).encode() + b"\n")
            file.flush()

        yield append, done


def _record_until_success(record: Record, task: str, episode: int, seed: int, max_attempts: int) -> _Attempts:
    for attempt in range(max_attempts):
        drawn = attempt_seed(seed, task, episode, attempt)
        recorded = record(task, drawn)
        if recorded.success:
            return _Attempts(recorded, drawn, attempt)
    return _Attempts(None, drawn, max_attempts)


def _record_all(
    record: Record, request: CollectionRequest, jobs: list[tuple[str, int]], workers: int
) -> Iterator[tuple[tuple[str, int], _Attempts]]:
    """Yield the jobs in order with what was recorded."""
    arguments = (request.seed, request.max_attempts)
    if workers == 1:
        for job in jobs:
            yield job, _record_until_success(record, *job, *arguments)
        return
    # Spawn, not fork: renderers and thread pools do not survive a fork.
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting: deque[tuple[tuple[str, int], Future[_Attempts]]] = deque()
        for job in jobs:
            waiting.append((job, executor.submit(_record_until_success, record, *job, *arguments)))
            if len(waiting) == 2 * workers:  # an episode is 9 MB: do not let finished ones pile up
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _store(folder: Path, first: int, task: str, episode: int, attempts: _Attempts) -> EpisodeRecord:
    for number in range(first, first + FRAMES_PER_SLOT):
        (folder / frame_name(number)).unlink(missing_ok=True)  # what a killed run left of this episode
    num_frames, instruction = 0, ""
    if attempts.episode is not None:
        length = len(attempts.episode.frames.get("rel_actions", ()))
        if length > FRAMES_PER_SLOT:
            raise DatasetError(
                explain(
                    f"episode of {task!r}",
                    got=f"{length} frames",
                    expected=f"at most {FRAMES_PER_SLOT}",
                    remedy="Cut it to CALVIN's longest language segment.",
                )
            )
        num_frames = write_episode(folder, first, attempts.episode.frames)
        instruction = attempts.episode.instruction
    return EpisodeRecord(task, episode, first, num_frames, attempts.seed, attempts.num_failed, instruction)


def _finish(
    output: Path, folder: Path, request: CollectionRequest, document: dict[str, Any], entries: list[EpisodeRecord]
) -> None:
    segments = tuple(
        Segment(entry.first_frame, entry.first_frame + entry.num_frames - 1, entry.task, entry.instruction)
        for entry in entries
        if entry.num_frames
    )
    if not segments:
        raise DatasetError(
            explain(
                f"collection in {output}",
                got="no successful episode",
                expected="at least one",
                remedy="Look at the scripted experts of these tasks, or raise the attempts.",
            )
        )
    # From disk and in order, so that a resumed or parallel collection has the same last digits.
    write_index(folder, segments, CalvinDataset(folder, segments).statistics(), scene=request.scene)
    document = {
        **document,
        "complete": True,
        "tasks": {summary.task: asdict(summary) for summary in _summaries(request, entries)},
        "episodes": [asdict(entry) for entry in entries],
    }
    with atomic_file(output / COLLECTION_RECORD) as path:
        path.write_text(json.dumps(document, indent=2) + "\n")


def _summaries(request: CollectionRequest, entries: list[EpisodeRecord]) -> tuple[TaskSummary, ...]:
    summaries = []
    for task in request.tasks:
        own = [entry for entry in entries if entry.task == task]
        kept = [entry for entry in own if entry.num_frames]
        summaries.append(
            TaskSummary(
                task,
                episodes=len(kept),
                frames=sum(entry.num_frames for entry in kept),
                retries=sum(entry.failed_attempts for entry in kept),
                missing=len(own) - len(kept),
            )
        )
    return tuple(summaries)
