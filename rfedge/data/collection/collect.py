"""Collects a CALVIN dataset from anything that can record a rollout: resumable, and the same for any number of workers.

Every (task, episode) pair owns a row of frame numbers and of seeds that follow from the arguments alone; the price is gaps
between rollouts, which the format allows. A rollout counts once its line is in the journal.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np

from rfedge.data.calvin import CalvinDataset, Segment, write_episode, write_index
from rfedge.data.collection.dataset_records import COLLECTION_RECORD
from rfedge.data.frames import Array, frame_name
from rfedge.errors import ConfigError, DatasetError
from rfedge.io.atomic import atomic_file
from rfedge.io.disk import check_room, read_json
from rfedge.io.journal import append_line, compare_arguments, open_lines, refuse_other_content, write_line
from rfedge.jobs.processes import run_jobs
from rfedge.records.plan import Option, check_least

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


# CALVIN's language segments have at most 64 frames; a longer one would run into its neighbour's numbers.
FRAMES_PER_SLOT: Final = 64
# What the two kinds of action in a frame mean, kept in collection.json.
LABELS: Final = {
    "rel_actions": "the expert's action for the state of this frame: what a policy learns, not always what was sent",
    "actions": "the absolute tcp pose of the next frame and the gripper action that was sent: what happened",
}
_SPLIT: Final = "training"
_ROLLOUT_BYTES: Final = 400_000  # of PlayTable: 40 frames of 10 kB
_SCHEMA_VERSION: Final = 1
_POSITIVE: Final = "Give a positive whole number."


Record = Callable[[str, int], Episode]


@dataclass(frozen=True, slots=True)
class CollectionRequest:
    tasks: tuple[str, ...]  # names, in the order of their frame numbers
    # rollouts wanted of each, successful ones unless `keep_failures`
    episodes_per_task: Annotated[int, Option("Rollouts that begin with each task.", min=1)] = 50
    seed: Annotated[int, Option("Decides every episode.", min=0)] = 0  # every rollout's seed is sampled from it
    scene: str = "D"  # letter of the CALVIN scene
    max_attempts: int = 10  # seeds tried for one rollout before it is given up
    frames_per_episode: int = FRAMES_PER_SLOT  # frame numbers that a rollout owns
    keep_failures: bool = False  # keep failed rollouts too, as relabelling does
    # what else decides the rollouts, by name and as JSON values: it is kept in collection.json beside the other arguments,
    # and a collection only goes on with the same
    recording: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """All of it as one JSON document; what follows from the rest comes last."""
        fields = asdict(self)
        recording = fields.pop("recording")
        derived = {name: fields.pop(name) for name in ("frames_per_episode", "keep_failures")}
        document: dict[str, Any] = json.loads(json.dumps({**fields, **recording, **derived}))
        return document

    def check(self) -> None:
        """Raise ConfigError when there is nothing to do or a task is named twice."""
        numbers = {"episodes per task": self.episodes_per_task, "max attempts": self.max_attempts}
        check_least(1, {**numbers, "frames per episode": self.frames_per_episode}, _POSITIVE)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(
                "tasks", got=list(self.tasks), expected="at least one, each once", remedy="Name each task once."
            )
        if self.seed < 0:
            raise ConfigError("seed", got=self.seed, expected="0 or more", remedy="Give a whole number from 0 on.")


@dataclass(frozen=True, slots=True)
class TaskSummary:
    task: str
    episodes: int  # rollouts that begin with it
    frames: int
    retries: int  # recordings thrown away for them
    missing: int  # rollouts given up after every attempt failed
    segments: int  # language segments of it, in whichever rollout
    solved: int  # those of them that end with the task done

    @property
    def mean_frames(self) -> float:
        return self.frames / self.episodes if self.episodes else 0.0


@dataclass(frozen=True, slots=True)
class CollectionResult:
    """Collection in `folder`; `num_resumed` episodes were there before."""

    folder: Path
    tasks: tuple[TaskSummary, ...]
    num_resumed: int


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
    """Record every rollout of `request` that is not there yet into `output`, then write the index files.

    Args:
        record: called as (task, seed); with `workers` above 1 it must be a top-level function or a partial of one.
        on_progress: called as (rollouts done, rollouts in all, task).

    Raises:
        ConfigError: `output` holds something else or another process writes to it, or an argument is out of range.
        DatasetError: no rollout succeeded, one has too many frames or arrays in another format, or a worker died.
    """
    request.check()
    check_least(1, {"workers": workers}, _POSITIVE)
    document = {
        "schema_version": _SCHEMA_VERSION,
        "complete": False,
        "arguments": request.arguments,
        "labels": LABELS,
        "versions": dict(versions or {}),
    }
    journal = output / JOURNAL
    refuse_other_content(journal, "something other than a collection")
    output.mkdir(parents=True, exist_ok=True)
    jobs = [(task, episode) for task in request.tasks for episode in range(request.episodes_per_task)]
    first_frames = {job: slot * request.frames_per_episode for slot, job in enumerate(jobs)}
    folder = output / _SPLIT
    with open_lines(journal, "a collection that is still running") as (file, lines):
        done = _read_records(journal, lines)
        _claim(output, document, started=bool(done))
        num_resumed = len(done)
        open_jobs = [job for job in jobs if job not in done]
        check_room(output, len(open_jobs) * _ROLLOUT_BYTES, what=f"{len(open_jobs)} episodes")
        call = functools.partial(_record_until_kept, record=record, request=request)
        for job, (recorded, seed, num_failed) in run_jobs(call, open_jobs, workers):
            done[job] = _store(folder, request, first_frames[job], job, recorded, seed, num_failed)
            append_line(file, journal, asdict(done[job]), sync=False)
            if on_progress is not None:
                on_progress(len(done), len(jobs), job[0])
        entries = [done[job] for job in jobs]
        _finish(output, folder, request, document, entries)
        rewrite_journal(journal, entries)
    return CollectionResult(folder, _summaries(request, entries), num_resumed)


def _read_records(path: Path, lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], EpisodeRecord]:
    try:
        records = [EpisodeRecord.of(line) for line in lines]
    except (KeyError, TypeError):
        remedy = "Choose another --output, or collect again into an empty folder."
        raise ConfigError(f"file {path}", got="a line of another version", expected="episodes", remedy=remedy) from None
    return {(record.task, record.episode): record for record in records}


def _claim(output: Path, document: dict[str, Any], *, started: bool) -> None:
    """Record the arguments, or, once an episode is there, make sure that it was recorded with the same ones."""
    path = output / COLLECTION_RECORD
    if not started:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n")
        return
    try:
        before = dict(read_json(path)["arguments"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"file {path}", got="unreadable text", expected="a collection record", remedy="Choose another --output."
        ) from None
    now = document["arguments"]
    # An argument that this version no longer has decides nothing any more.
    compare_arguments({name: before[name] for name in now if name in before}, now, f"the collection in {output}")


def _record_until_kept(
    job: tuple[str, int], *, record: Record, request: CollectionRequest
) -> tuple[Episode | None, int, int]:
    """Return the rollout, None where every attempt failed, with its seed and the number of failed attempts."""
    task, episode = job
    for attempt in range(request.max_attempts):
        seed = attempt_seed(request.seed, task, episode, attempt)
        recorded = record(task, seed)
        if recorded.success or request.keep_failures:
            return recorded, seed, attempt
    return None, seed, request.max_attempts


def _store(
    folder: Path,
    request: CollectionRequest,
    first: int,
    job: tuple[str, int],
    recorded: Episode | None,
    seed: int,
    num_failed: int,
) -> EpisodeRecord:
    for number in range(first, first + request.frames_per_episode):
        (folder / frame_name(number)).unlink(missing_ok=True)  # what a killed run left of this rollout
    if recorded is None:
        return EpisodeRecord(*job, first, 0, seed, num_failed, "", ())
    num_frames = len(recorded.frames.get("rel_actions", ()))
    _check_lengths(job[0], num_frames, recorded.segments, request.frames_per_episode)
    num_frames = write_episode(folder, first, recorded.frames)
    return EpisodeRecord(*job, first, num_frames, seed, num_failed, recorded.instruction, recorded.segments)


def _check_lengths(task: str, num_frames: int, segments: tuple[SegmentRecord, ...], most: int) -> None:
    longest = max(segment.num_frames for segment in segments)
    for subject, got, allowed in (("episode", num_frames, most), ("segment", longest, FRAMES_PER_SLOT)):
        if got > allowed:
            remedy = "Cut it to CALVIN's longest language segment."
            raise DatasetError(f"{subject} of {task!r}", got=f"{got} frames", expected=f"at most {allowed}", remedy=remedy)
    covered = sum(segment.num_frames for segment in segments)
    if covered != num_frames:
        expected = f"{num_frames}, as recorded"
        remedy = "Describe every frame once."
        raise DatasetError(f"segments of {task!r}", got=f"{covered} frames", expected=expected, remedy=remedy)


def _finish(
    output: Path, folder: Path, request: CollectionRequest, document: dict[str, Any], entries: list[EpisodeRecord]
) -> None:
    segments = []
    for entry in entries:
        start = entry.first_frame
        for part in entry.segments:
            segments.append(Segment(start, start + part.num_frames - 1, part.task, part.instruction))
            start += part.num_frames
    if not segments:
        remedy = "Look at the scripted experts of these tasks, or raise the attempts."
        raise DatasetError(f"collection in {output}", got="no successful episode", expected="at least one", remedy=remedy)
    # From disk and in order, so that a resumed or parallel collection has the same last digits.
    statistics = CalvinDataset(folder, tuple(segments)).statistics()
    bounds = [(entry.first_frame, entry.first_frame + entry.num_frames - 1) for entry in entries if entry.num_frames]
    write_index(folder, segments, statistics, scene=request.scene, episodes=bounds)
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
    shown = [segment for entry in entries for segment in entry.segments]
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
                segments=sum(segment.task == task for segment in shown),
                solved=sum(segment.task == task and segment.solved for segment in shown),
            )
        )
    return tuple(summaries)
