"""Reads a source, maps every episode and writes one CALVIN split, whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final

from rfedge.data.calvin import Segment, write_episode, write_index
from rfedge.data.collection.dataset_records import CALVIN_HZ, CONVERSION_RECORD
from rfedge.data.conversion.hdf5 import Hdf5Source
from rfedge.data.conversion.lerobot import LeRobotSource
from rfedge.data.conversion.mapping import MappedEpisode, map_episode
from rfedge.data.conversion.options import ConversionOptions
from rfedge.data.conversion.records import Layout, Source
from rfedge.data.conversion.survey import Survey, raise_all, survey_source
from rfedge.data.statistics import DatasetStatistics
from rfedge.errors import ConfigError, DatasetError, one_of
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
    open_source = _SOURCES[one_of(_SOURCES, source_format, "--from", remedy="Choose one of them.")]
    with closing(open_source(source, options)) as opened:
        missing = _missing(opened)
        source_hz, survey = _survey(opened, options, missing, source)
        totals = _Totals({_plain(sentence): task for sentence, task in options.tasks.items()})

        def add(index: int) -> MappedEpisode:
            episode = map_episode(opened.read(index, images=True), opened.layout, options, source_hz)
            totals.add(episode)
            return episode

        def result(folder: Path | None) -> ConversionResult:
            return ConversionResult(
                folder=folder,
                layout=opened.layout.name,
                fields={name: str(field) for name, field in opened.fields.items()},
                num_episodes=opened.num_episodes,
                num_frames=totals.num_frames,
                num_segments=len(totals.segments),
                segments_per_task=dict(sorted(totals.statistics.episodes_per_task.items())),
                source_hz=source_hz,
                frequency_hz=options.fps or source_hz,
                clipped_share=totals.num_clipped / max(totals.num_frames, 1),
                missing=missing,
                motion_factors=survey.factors,
                notes=(*opened.notes(), *survey.notes),
            )

        if trial:
            add(0)
            return result(None)
        check_room(output, opened.num_episodes * _EPISODE_BYTES, what=f"{opened.num_episodes} episodes")
        with atomic_directory(output, overwrite=overwrite) as temporary:
            folder = temporary / options.split
            for index in range(opened.num_episodes):
                first = totals.num_frames
                write_episode(folder, first, add(index).frames)
                if on_progress is not None:
                    on_progress(index + 1, opened.num_episodes)
            write_index(folder, totals.segments, totals.statistics, scene=None, episodes=totals.episodes)
            record = _record(source, source_format, options, opened.layout, result(None), versions)
            (temporary / CONVERSION_RECORD).write_text(json.dumps(record, indent=2) + "\n")
        return result(output / options.split)


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


@dataclass
class _Totals:
    tasks: Mapping[str, str]  # plain sentence -> task
    num_frames: int = 0
    num_clipped: int = 0
    episodes: list[tuple[int, int]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    statistics: DatasetStatistics = field(default_factory=DatasetStatistics)

    def add(self, episode: MappedEpisode) -> None:
        first = self.num_frames
        for start, stop, sentence in _segments(episode.instructions):
            task = _task(sentence, self.tasks)
            self.segments.append(Segment(first + start, first + stop - 1, task, sentence))
            self.statistics.add(task, {key: array[start:stop] for key, array in episode.frames.items()})
        self.num_frames += len(episode.instructions)
        self.num_clipped += episode.num_clipped
        self.episodes.append((first, self.num_frames - 1))


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
