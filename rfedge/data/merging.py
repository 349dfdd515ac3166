"""Merges datasets into one: rounds of relabelling with the demonstrations before them, or what several machines recorded.

Frames are linked where the file system allows it. Every source keeps the gaps between its frame numbers and is shifted as
a whole; sources of one scene come together, because scene_info.npy knows one range of frames a scene.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rfedge.bundle.artifact import hash_file
from rfedge.data.calvin import CalvinDataset, Segment, write_index
from rfedge.data.collection.dataset_records import COLLECTION_RECORD, missing_parts
from rfedge.data.frames import frame_name
from rfedge.errors import ConfigError, DatasetError
from rfedge.io.atomic import atomic_directory
from rfedge.io.disk import check_room, read_json
from rfedge.jobs.progress import Count
from rfedge.robot.conventions import Conventions, refuse_disagreement

_SPLIT: Final = "training"
_SCHEMA_VERSION: Final = 1
_MAX_NUMBER: Final = 9_999_999  # file names have seven digits
_KEPT_FIELDS: Final = ("arguments", "labels", "versions", "sources")


@dataclass(frozen=True, slots=True)
class MergedSource:
    """One source as it lies in the result."""

    folder: str  # the split that was read, as it was named
    scene: str | None
    shift: int  # what was added to its frame numbers
    # num_frames, num_segments: how much of the result came from it
    num_frames: int
    num_segments: int


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Merged dataset in `folder`; `num_linked` of the frames take no room of their own."""

    folder: Path
    sources: tuple[MergedSource, ...]
    num_frames: int
    num_segments: int
    num_linked: int


def merge_datasets(sources: Sequence[Path], output: Path, *, on_progress: Count | None = None) -> MergeResult:
    """Write a dataset that holds all segments of two or more `sources`; it appears whole or not at all.

    Raises:
        ConfigError: fewer than two sources, one named twice, or two of another control rate or camera geometry.
        DatasetError: a source is missing, damaged, unfinished or of several scenes, or numbers exceed seven digits.
        ArtifactError: `output` exists.
    """
    if len({source.resolve() for source in sources}) != len(sources) or len(sources) < 2:
        named = ", ".join(str(source) for source in sources) or "nothing"
        raise ConfigError("datasets", got=named, expected="two or more, each once", remedy="Name all that belong in.")
    datasets = [CalvinDataset.open(source) for source in sources]
    conventions = _joint_conventions(datasets)
    scenes = [_scene(dataset) for dataset in datasets]
    order = sorted(range(len(sources)), key=lambda index: scenes.index(scenes[index]))
    plan = _plan([datasets[index] for index in order], [scenes[index] for index in order])
    total = sum(row.num_frames for _, row in plan)
    check_room(output, _copied_bytes(datasets, output), what="the frames of another file system")
    num_linked = done = 0
    with atomic_directory(output) as temporary:
        folder = temporary / _SPLIT
        folder.mkdir()
        segments: list[Segment] = []
        episodes: list[tuple[int, int]] = []
        ranges: dict[str, tuple[int, int]] = {}
        for dataset, row in plan:
            for number in dataset.frame_numbers():
                num_linked += _link(dataset.frame_path(number), folder / frame_name(number + row.shift))
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
            segments += [
                Segment(part.start + row.shift, part.end + row.shift, part.task, part.instruction)
                for part in dataset.segments
            ]
            bounds = [(first + row.shift, last + row.shift) for first, last in _annotated_episodes(dataset)]
            episodes += bounds
            if row.scene is not None:
                ranges[row.scene] = (ranges.get(row.scene, bounds[0])[0], bounds[-1][1])
        statistics = CalvinDataset(folder, tuple(segments)).statistics()
        # A range for a part of the frames would be worse than none.
        known = ranges if all(row.scene is not None for _, row in plan) else None
        write_index(folder, segments, statistics, scene=known, episodes=episodes)
        (temporary / COLLECTION_RECORD).write_text(json.dumps(_record(plan, segments, conventions), indent=2) + "\n")
    merged = tuple(row for _, row in plan)
    return MergeResult(output / _SPLIT, merged, total, len(segments), num_linked)


def _joint_conventions(datasets: Sequence[CalvinDataset]) -> Conventions:
    joint, owner = datasets[0].conventions, datasets[0].folder
    for dataset in datasets[1:]:
        own = dataset.conventions
        refuse_disagreement(f"dataset {dataset.folder}", own, f"dataset {owner}", joint)
        joint = Conventions(joint.control_hz or own.control_hz, joint.resize or own.resize)
    return joint


def _copied_bytes(datasets: Sequence[CalvinDataset], output: Path) -> int:
    """Return the size of what cannot be linked, from one frame of each dataset."""
    folder = next(parent for parent in output.absolute().parents if parent.is_dir())
    size_bytes = 0
    for dataset in datasets:
        numbers = dataset.frame_numbers()
        status = dataset.frame_path(numbers[0]).stat()
        size_bytes += len(numbers) * status.st_size if status.st_dev != folder.stat().st_dev else 0
    return size_bytes


def _scene(dataset: CalvinDataset) -> str | None:
    found = {dataset.scene_of(segment.start) for segment in dataset.segments}
    if len(found) > 1:
        got = f"scenes {', '.join(sorted(str(scene) for scene in found))}"
        remedy = "Merge datasets of single scenes."
        raise DatasetError(f"dataset {dataset.folder}", got=got, expected="one scene a dataset", remedy=remedy)
    return found.pop()


def _plan(datasets: Sequence[CalvinDataset], scenes: Sequence[str | None]) -> list[tuple[CalvinDataset, MergedSource]]:
    plan, next_number = [], 0
    for dataset, scene in zip(datasets, scenes, strict=True):
        numbers = dataset.frame_numbers()
        shift = next_number - numbers[0]
        next_number = numbers[-1] + shift + 1
        plan.append((dataset, MergedSource(str(dataset.folder), scene, shift, len(numbers), len(dataset.segments))))
    if next_number - 1 > _MAX_NUMBER:
        remedy = "Merge fewer datasets."
        raise DatasetError("frame numbers", got=f"up to {next_number - 1}", expected=f"at most {_MAX_NUMBER}", remedy=remedy)
    return plan


def _annotated_episodes(dataset: CalvinDataset) -> list[tuple[int, int]]:
    """Return the episodes cut to what segments cover: frames without language are not taken over."""
    covered: list[tuple[int, int]] = []
    ends = {last for _, last in dataset.episodes}
    for number in dataset.frame_numbers():
        if covered and number == covered[-1][1] + 1 and covered[-1][1] not in ends:
            covered[-1] = (covered[-1][0], number)
        else:
            covered.append((number, number))
    return covered


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        return False
    return True


def _record(
    plan: Sequence[tuple[CalvinDataset, MergedSource]], segments: Sequence[Segment], conventions: Conventions
) -> dict[str, Any]:
    counts = Counter(segment.task for segment in segments)
    return {
        "schema_version": _SCHEMA_VERSION,
        "complete": True,
        "conventions": asdict(conventions),
        "missing": sorted({name for dataset, _ in plan for name in missing_parts(dataset.folder)}),
        "tasks": {task: {"segments": count} for task, count in sorted(counts.items())},
        "sources": [{**asdict(row), **_provenance(dataset.folder)} for dataset, row in plan],
    }


def _provenance(folder: Path) -> dict[str, Any]:
    """Return what the source's own record says about how it was collected, and the hash of that record."""
    record = folder.parent / COLLECTION_RECORD
    if not record.is_file():
        return {}
    content = read_json(record)
    return {"record_sha256": hash_file(record), **{name: content[name] for name in _KEPT_FIELDS if name in content}}
