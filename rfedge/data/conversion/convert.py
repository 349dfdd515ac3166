"""Reads a source, maps every episode and writes one CALVIN split, whole or not at all."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final

from rfedge.data.calvin import Segment
from rfedge.data.collection.dataset_records import CALVIN_HZ, CONVERSION_RECORD
from rfedge.data.collection.writer import write_episode, write_index
from rfedge.data.conversion.hdf5 import Hdf5Source
from rfedge.data.conversion.lerobot import LeRobotSource
from rfedge.data.conversion.mapping import MappedEpisode, map_episode
from rfedge.data.conversion.options import ConversionOptions
from rfedge.data.conversion.records import Layout, Source
from rfedge.data.conversion.survey import Survey, raise_all, survey_source
from rfedge.data.statistics import StatisticsBuilder
from rfedge.errors import ConfigError, DatasetError, did_you_mean
from rfedge.io.atomic import atomic_directory
from rfedge.io.disk import check_room
from rfedge.jobs.progress import Count

_SOURCES: Final[Mapping[str, Callable[[Path, ConversionOptions], Source]]] = {"hdf5": Hdf5Source, "lerobot": LeRobotSource}
# CALVIN's longest language segment.
_SEGMENT_FRAMES: Final = 64
_SCHEMA_VERSION: Final = 1
_EPISODE_BYTES: Final = 100_000  # ten frames of 10 kB: fewer than an episode has


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """The written dataset, or, after a trial, its first episode."""

    folder: Path | None  # the split folder; None after a trial
    layout: str  # what the source was taken for
    fields: Mapping[str, str]  # field -> array of the source
    num_episodes: int
    num_frames: int
    num_segments: int
    segments_per_task: Mapping[str, int]  # task -> language segments
    # source_hz, frequency_hz: frames a second, read and written
    source_hz: float
    frequency_hz: float
    clipped_share: float  # share of frames whose step was longer than 0.02 m or 0.05 rad and was cut to that
    missing: tuple[str, ...]  # what the source does not have: "gripper" (black images), "joints" and "scene_obs" (zeros)
    # "translation", "rotation" -> measured motion per commanded motion; without what never moved
    motion_factors: Mapping[str, float]
    notes: tuple[str, ...]  # what was read or allowed differently from what the source says


def convert_dataset(
    source: Path,
    source_format: str,
    output: Path,
    options: ConversionOptions,
    *,
    trial: bool = False,
    overwrite: bool = False,
    versions: Mapping[str, str] | None = None,
    on_progress: Count | None = None,
) -> ConversionResult:
    """Convert `source` ("hdf5": a file or a folder of them; "lerobot": a dataset's root) into a dataset at `output`.

    It appears when everything is written, with a record of how in `conversion.json`.
    Everything wrong with the source is raised as one error before the first picture is decoded; a `trial` ends there.

    Raises:
        ConfigError: an option is unknown, or a decision is missing.
        DatasetError: the source is damaged, of another version or robot, or its actions are not in the stated units.
        ArtifactError: `output` exists and `overwrite` is false.
        ModuleNotFoundError: a library of the `data` extra is not installed.
    """
    options.check()
    if source_format not in _SOURCES:
        expected = did_you_mean(source_format, _SOURCES)
        raise ConfigError("--from", got=repr(source_format), expected=expected, remedy="Choose one of them.")
    with closing(_SOURCES[source_format](source, options)) as opened:
        missing = _missing(opened)
        source_hz, survey = _survey(opened, options, missing, source)
        tasks = {_plain(sentence): task for sentence, task in options.tasks.items()}
        totals = _Totals(opened, missing, source_hz, options.fps or source_hz, survey)
        if trial:
            totals.add(_map(opened, 0, options, source_hz), tasks)
            return totals.result(None)
        check_room(output, opened.num_episodes * _EPISODE_BYTES, what=f"{opened.num_episodes} episodes")
        with atomic_directory(output, overwrite=overwrite) as temporary:
            folder = temporary / options.split
            for index in range(opened.num_episodes):
                episode = _map(opened, index, options, source_hz)
                write_episode(folder, totals.num_frames, episode.frames)
                totals.add(episode, tasks)
                if on_progress is not None:
                    on_progress(index + 1, opened.num_episodes)
            statistics = totals.statistics.result()
            write_index(folder, totals.segments, statistics, scene=None, episodes=totals.episodes)
            record = _record(source, source_format, options, opened.layout, totals.result(None), versions)
            (temporary / CONVERSION_RECORD).write_text(json.dumps(record, indent=2) + "\n")
        return totals.result(output / options.split)


def _map(source: Source, index: int, options: ConversionOptions, source_hz: float) -> MappedEpisode:
    return map_episode(source.read(index, images=True), source.layout, options, source_hz)


def _survey(source: Source, options: ConversionOptions, missing: tuple[str, ...], path: Path) -> tuple[float, Survey]:
    """Return the source's frequency and what its numbers say; raise everything that is wrong with it, at once."""
    field_faults = source.field_faults()
    faults = field_faults + source.file_faults()
    if "gripper" in missing and "gripper" not in options.allow_missing:
        got = "no wrist camera"
        expected = "two cameras, static and gripper"
        remedy = "Name it with --map gripper=KEY, or write black images with --allow-missing gripper."
        faults.append(DatasetError(f"source ({source.layout.name})", got=got, expected=expected, remedy=remedy))
    source_hz = options.source_fps or source.layout.frequency_hz
    if (fault := _frequency_fault(source, options, source_hz)) is not None:
        faults.append(fault)
    survey = Survey((), (), {})
    if not field_faults:
        survey = survey_source(source, options, source_hz or CALVIN_HZ)
        faults += survey.faults
    raise_all(f"source {path}", faults)
    assert source_hz is not None
    return source_hz, survey


class _Totals:
    def __init__(
        self, source: Source, missing: tuple[str, ...], source_hz: float, written_hz: float, survey: Survey
    ) -> None:
        self._source = source
        self._survey = survey
        self._missing = missing
        self._hz = (source_hz, written_hz)
        self.num_frames = 0
        self._num_clipped = 0
        self.episodes: list[tuple[int, int]] = []
        self.segments: list[Segment] = []
        self.statistics = StatisticsBuilder()

    def add(self, episode: MappedEpisode, tasks: Mapping[str, str]) -> None:
        first = self.num_frames
        for start, stop, sentence in _segments(episode.instructions):
            task = _task(sentence, tasks)
            self.segments.append(Segment(first + start, first + stop - 1, task, sentence))
            self.statistics.add(task, {key: array[start:stop] for key, array in episode.frames.items()})
        self.num_frames += len(episode.instructions)
        self._num_clipped += episode.num_clipped
        self.episodes.append((first, self.num_frames - 1))

    def result(self, folder: Path | None) -> ConversionResult:
        return ConversionResult(
            folder=folder,
            layout=self._source.layout.name,
            fields={name: str(field) for name, field in self._source.fields.items()},
            num_episodes=self._source.num_episodes,
            num_frames=self.num_frames,
            num_segments=len(self.segments),
            segments_per_task=dict(sorted(Counter(segment.task for segment in self.segments).items())),
            source_hz=self._hz[0],
            frequency_hz=self._hz[1],
            clipped_share=self._num_clipped / max(self.num_frames, 1),
            missing=self._missing,
            motion_factors=self._survey.factors,
            notes=(*self._source.notes(), *self._survey.notes),
        )


def _missing(source: Source) -> tuple[str, ...]:
    absent = {
        "gripper": "gripper" not in source.fields,
        "joints": not {"state", "joints"} & source.fields.keys(),
        "scene_obs": "scene_obs" not in source.fields,
    }
    return tuple(name for name, is_absent in absent.items() if is_absent)


def _frequency_fault(source: Source, options: ConversionOptions, source_hz: float | None) -> ConfigError | None:
    subject, stated = f"source ({source.layout.name})", source.layout.frequency_hz
    if source_hz is None:
        remedy = "Give it with --source-fps."
        return ConfigError(subject, got="no frequency", expected="frames a second", remedy=remedy)
    if options.source_fps is not None and stated is not None and abs(options.source_fps - stated) > 1e-6 * stated:
        expected = f"{stated:g} Hz, which the source says"
        remedy = "Leave it out, or correct the source."
        return ConfigError("--source-fps", got=f"{options.source_fps:g} Hz", expected=expected, remedy=remedy)
    if options.fps is None and source_hz != CALVIN_HZ:
        expected = f"{CALVIN_HZ:g} Hz, at which CALVIN's robot is controlled"
        remedy = f"Pass --fps {CALVIN_HZ:g} to resample, or --fps {source_hz:g} to keep it and control at that."
        return ConfigError(subject, got=f"{source_hz:g} Hz", expected=expected, remedy=remedy)
    return None


def _segments(instructions: tuple[str, ...]) -> Iterator[tuple[int, int, str]]:
    """Cut every run of one instruction into the fewest windows of at most 64 frames, as equal in length as they can be."""
    start = 0
    for sentence, run in groupby(instructions):
        length = len(list(run))
        count = -(-length // _SEGMENT_FRAMES)
        bounds = [start + length * number // count for number in range(count + 1)]
        for first, stop in pairwise(bounds):
            yield first, stop, sentence
        start += length


def _task(sentence: str, tasks: Mapping[str, str]) -> str:
    """Return the known task of a sentence, or a name made of its words; `tasks` has plain sentences as keys."""
    plain = _plain(sentence)
    return tasks.get(plain) or re.sub(r"[^a-z0-9]+", "_", plain).strip("_") or "task"


def _plain(sentence: str) -> str:
    return " ".join(sentence.lower().strip(" .!").split())


def _record(
    source: Path,
    source_format: str,
    options: ConversionOptions,
    layout: Layout,
    result: ConversionResult,
    versions: Mapping[str, str] | None,
) -> dict[str, Any]:
    chosen = {key: value for key, value in asdict(options).items() if key not in ("fields", "tasks")}
    return {
        "schema_version": _SCHEMA_VERSION,
        "source": source.name,
        "source_format": source_format,
        "options": chosen,
        "conventions": {
            "position_scale_m": options.position_scale_m or layout.position_scale_m,
            "rotation_scale_rad": options.rotation_scale_rad or layout.rotation_scale_rad,
            "rotation": options.rotation or layout.rotation,
            "gripper": options.gripper or layout.gripper,
            "flip": options.flip or layout.flip,
        },
        **{key: value for key, value in asdict(result).items() if key != "folder"},
        "versions": dict(versions or {}),
    }
