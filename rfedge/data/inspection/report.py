"""Report on a CALVIN split: its content, and what is damaged in it.

Damage is everything that CALVIN's released splits do not have: such frames make a training stop, or teach something
wrong. Index files are checked whole, frames by a seeded sample unless all are asked for.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.data import calvin
from rfedge.data.collection import dataset_records
from rfedge.data.frames import frame_number
from rfedge.data.inspection import index
from rfedge.data.inspection.frames import CHECKED_VALUES, CheckedFrames, Finding, FrameChecks, check_frames
from rfedge.data.inspection.motion import Tolerance
from rfedge.data.inspection.runs import LENIENT, RunChecks, RunRules, in_blocks
from rfedge.data.scene.scenes import SCENE_INFO_FILE, SceneFrames, contradicted_by, read_scenes
from rfedge.data.statistics import RunningMoments
from rfedge.errors import DatasetError
from rfedge.jobs.processes import run_jobs
from rfedge.jobs.progress import Count
from rfedge.records.plan import check_least

_STATISTICS_FILE: Final = "statistics.yaml"
_FRAMES_PER_CHUNK: Final = 32


@dataclass(frozen=True, slots=True)
class TaskCount:
    """Segments of one task; `frames` counts an overlapped frame once per segment."""

    task: str
    segments: int
    frames: int
    shortest: int
    median: float
    longest: int


@dataclass(frozen=True, slots=True)
class SceneCount:
    """Frame files on disk of one scene; `last` is the last one there when the split does not end the scene."""

    scene: str
    first: int
    last: int
    frames: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Per element: mean, population standard deviation, smallest and largest value."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class InspectionReport:
    folder: str
    # num_frames, num_frames_checked: frame files on disk, and those that were read
    num_frames: int
    num_frames_checked: int
    size_bytes: int  # of the frame files; `size_is_estimate` when not all were looked at
    size_is_estimate: bool
    num_episodes: int
    num_segments: int
    num_instructions: int
    tasks: tuple[TaskCount, ...]
    scenes: tuple[SceneCount, ...]
    # "robot_obs", "scene_obs" and "rel_actions" over the checked frames; with several scenes also "scene_obs of A" and so
    # on, because the order of the blocks in scene_obs differs between scenes
    spreads: Mapping[str, Spread]
    # "translation", "rotation" -> measured motion per commanded motion, over the checked runs of frames
    motion_factors: Mapping[str, float]
    # per value of statistics.yaml the largest difference; of a mean in standard deviations, of a deviation as a factor, of
    # an action bound in its own units; empty without that file
    against_statistics: Mapping[str, float]
    language_folders: tuple[str, ...]
    notes: tuple[str, ...]  # facts that are not damage
    findings: tuple[Finding, ...]  # damage; empty for a sound dataset


def inspect_dataset(
    path: Path,
    *,
    split: str | None = None,
    num_frames: int | None = 1000,
    seed: int = 0,
    workers: int = 1,
    task_names: Sequence[str] = (),
    on_progress: Count | None = None,
) -> InspectionReport:
    """Check a split, reading a sample of `num_frames` or all frames; tasks that are not in `task_names` are noted.

    Raises:
        DatasetError: there is no folder or no frame in it, or its collection was interrupted.
        ConfigError: `num_frames` or `workers` is below 1.
    """
    check_least(1, {"frames": 1 if num_frames is None else num_frames, "workers": workers}, "Give a positive whole number.")
    folder = calvin.find_split(path, split)
    calvin.refuse_interrupted_collection(path, folder)
    existing = _list_frames(folder)
    findings: list[Finding] = []
    notes: list[str] = []
    episodes = _collected(findings, lambda: calvin.read_episodes(folder), ())
    scenes = _collected(findings, lambda: read_scenes(folder), ())
    language_file = _collected(findings, lambda: calvin.find_language_file(folder), None)
    segments: tuple[calvin.Segment, ...] = ()
    if language_file is not None:
        name = f"{language_file.parent.name}/{language_file.name}"
        segments, blank = _collected(findings, lambda: calvin.read_annotations(language_file), ((), ()))
        findings += [
            Finding(name, f"segment {place} ({part.task}, frames {part.start} to {part.end}): no instruction", "words")
            for place, part in blank
        ]
        findings += index.check_segments(segments, episodes, name)
        others = sorted({segment.task for segment in segments} - {*task_names}) if task_names else []
        if others:
            shown = ", ".join(others[:8]) + (" ..." if len(others) > 8 else "")
            notes.append(f"{len(others)} tasks are none of CALVIN's {len(task_names)}, no simulator checks them: {shown}")
    language_folders = tuple(sorted(path.parent.name for path in folder.glob("lang_*/auto_lang_ann.npy")))
    if segments:  # an unreadable annotation file is already listed
        for other in language_folders:
            findings += index.check_embeddings(folder / other / "auto_lang_ann.npy", len(segments) + len(blank))
    findings += index.check_episodes(folder, episodes) if not any("ep_start_end" in item.file for item in findings) else []
    findings += index.check_missing_frames(existing, episodes, segments) + index.check_scenes(existing, scenes)
    if (configured := contradicted_by(folder, scenes)) is not None:
        named = ", ".join(scene.scene for scene in scenes)
        findings.append(Finding(SCENE_INFO_FILE, f"scenes {named}", f"scene {configured}, which .hydra names"))
    notes += _index_notes(existing, episodes, segments, scenes)
    checks = _frame_checks(folder, notes)
    chosen = existing
    if num_frames is not None and num_frames < len(existing):
        chosen = in_blocks(existing, num_frames, _FRAMES_PER_CHUNK, np.random.default_rng(seed))
    totals = _Totals(scenes)
    runs = RunChecks(_run_rules(folder, checks), (first for first, _ in episodes))
    for checked in _check_all(folder, [int(number) for number in chosen], checks, workers):
        totals.add(checked)
        runs.add(checked)
        findings += checked.findings
        if on_progress is not None:
            on_progress(totals.num_files, len(chosen))
    run_findings, run_notes, motion_factors = runs.result()
    findings, notes = findings + run_findings, notes + run_notes
    spreads = totals.spreads()
    against, problems = _against_statistics(folder, spreads, notes)
    return InspectionReport(
        folder=str(folder),
        num_frames=len(existing),
        num_frames_checked=len(chosen),
        size_bytes=round(totals.size_bytes * len(existing) / len(chosen)),
        size_is_estimate=len(chosen) < len(existing),
        num_episodes=len(episodes),
        num_segments=len(segments),
        num_instructions=len({segment.instruction for segment in segments}),
        tasks=_task_counts(segments),
        scenes=_scene_counts(existing, scenes),
        spreads=spreads,
        motion_factors=motion_factors,
        against_statistics=against,
        language_folders=language_folders,
        notes=tuple(notes),
        findings=(*findings, *problems),
    )


class _Totals:
    def __init__(self, scenes: Sequence[SceneFrames]) -> None:
        self._scenes = scenes if len({scene.scene for scene in scenes}) > 1 else ()
        self._moments: dict[str, RunningMoments] = {}
        self.num_files = 0
        self.size_bytes = 0

    def add(self, checked: CheckedFrames) -> None:
        self.num_files += checked.num_files
        self.size_bytes += checked.size_bytes
        for key in CHECKED_VALUES:
            self._add(key, checked.values[key])
        for scene in self._scenes:
            own = [scene.holds(int(number)) for number in checked.numbers]
            self._add(f"scene_obs of {scene.scene}", checked.values["scene_obs"][own])

    def _add(self, name: str, rows: npt.NDArray[np.float64]) -> None:
        if len(rows):
            self._moments.setdefault(name, RunningMoments(rows.shape[1])).add(rows)

    def spreads(self) -> dict[str, Spread]:
        return {
            name: Spread(
                *(tuple(row.tolist()) for row in (moments.mean, moments.deviation, moments.minimum, moments.maximum))
            )
            for name, moments in self._moments.items()
        }


def _collected(findings: list[Finding], read: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return read()
    except DatasetError as error:
        findings.append(Finding(Path(error.subject.split(" ", 1)[-1]).name, error.got, error.expected))
        return otherwise


def _list_frames(folder: Path) -> npt.NDArray[np.int64]:
    with os.scandir(folder) as entries:
        numbers = [number for entry in entries if (number := frame_number(entry.name)) is not None]
    if not numbers:
        expected = "files named episode_0000000.npz"
        remedy = "Give the folder that holds the frames."
        raise DatasetError(f"dataset {folder}", got="no frame files", expected=expected, remedy=remedy)
    return np.array(sorted(numbers), dtype=np.int64)


def _run_rules(folder: Path, checks: FrameChecks) -> RunRules:
    """Hold a conversion to what it was refused for; CALVIN's own rel_actions say less about the arm's motion."""
    conversion = dataset_records.find_record(folder, dataset_records.CONVERSION_RECORD) or {}
    options = conversion.get("options")
    options = options if isinstance(options, dict) else {}
    says_motion = options.get("actions") in ("relative", "next-state")
    allowed = options.get("allow_mismatch")
    return RunRules(
        frequency_hz=dataset_records.read_conventions(folder).control_hz or dataset_records.CALVIN_HZ,
        tolerance=Tolerance() if says_motion else LENIENT,
        allowed=tuple(allowed) if isinstance(allowed, list) else (),
        absent=checks.absent,
    )


def _frame_checks(folder: Path, notes: list[str]) -> FrameChecks:
    """Leave out what a collection or conversion is known not to have, and say so."""
    missing = dataset_records.missing_parts(folder)
    notes += [f"converted without {name}" for name in missing]
    absent = ("rgb_gripper",) if "gripper" in missing else ()
    if dataset_records.find_record(folder, dataset_records.COLLECTION_RECORD) is not None:
        notes.append("rel_actions are the commands that were sent, actions the poses reached: they are not compared")
        return FrameChecks(compare_actions=False, absent=absent)
    return FrameChecks(absent=absent)


def _index_notes(
    existing: npt.NDArray[np.int64],
    episodes: Sequence[tuple[int, int]],
    segments: Sequence[calvin.Segment],
    scenes: Sequence[SceneFrames],
) -> list[str]:
    notes = []
    if episodes:
        ordered = np.array(sorted(episodes))
        place = np.searchsorted(ordered[:, 0], existing, side="right") - 1
        outside = int(((place < 0) | (existing > ordered[np.maximum(place, 0), 1])).sum())
        if outside:
            notes.append(f"{outside} frames belong to no episode")
    repeated = len(segments) - len({(segment.start, segment.end, segment.task) for segment in segments})
    if repeated:
        notes.append(f"{repeated} segments repeat the frames and task of another one")
    if not scenes:
        notes.append("the split does not say which scene it shows")
    return notes


def _check_all(folder: Path, numbers: list[int], checks: FrameChecks, workers: int) -> Iterator[CheckedFrames]:
    """Yield the results in the order of the frames, whatever the number of workers."""
    starts = range(0, len(numbers), _FRAMES_PER_CHUNK)
    chunks = deque(tuple(numbers[start : start + _FRAMES_PER_CHUNK]) for start in starts)
    ready: dict[tuple[int, ...], CheckedFrames] = {}
    for chunk, checked in run_jobs(partial(check_frames, folder, checks), tuple(chunks), workers):
        ready[chunk] = checked
        while chunks and chunks[0] in ready:
            yield ready.pop(chunks.popleft())


def _against_statistics(
    folder: Path, spreads: Mapping[str, Spread], notes: list[str]
) -> tuple[dict[str, float], list[Finding]]:
    path = folder / _STATISTICS_FILE
    if not path.is_file():
        notes.append(f"no {_STATISTICS_FILE}: nothing to compare with")
        return {}, []
    try:
        stored, findings = index.parse_statistics(path)
    except ModuleNotFoundError:
        notes.append(f"{_STATISTICS_FILE} was not compared: that needs PyYAML, pip install 'rfedge[data]'")
        return {}, []
    differences = {}
    for key in ("robot_obs", "scene_obs"):
        if key in stored and key in spreads:
            spread, mean, deviation = spreads[key], stored[key]["mean"], np.maximum(stored[key]["std"], 1e-6)
            still = np.array(spread.deviation) < 1e-6  # an element that never moved has no scale to compare by
            differences[f"{key} mean"] = float(np.abs((spread.mean - mean) / deviation)[~still].max(initial=0.0))
            factors = np.maximum(np.array(spread.deviation) / deviation, deviation / np.maximum(spread.deviation, 1e-6))
            differences[f"{key} deviation"] = float(factors[~still].max(initial=1.0))
    if "rel_actions" in spreads:
        for key, values in (
            ("act_max_bound", spreads["rel_actions"].maximum),
            ("act_min_bound", spreads["rel_actions"].minimum),
        ):
            if key in stored:
                differences[key] = float(np.abs(np.array(values) - stored[key]).max())
    return differences, findings


def _task_counts(segments: Sequence[calvin.Segment]) -> tuple[TaskCount, ...]:
    lengths: dict[str, list[int]] = {}
    for segment in segments:
        lengths.setdefault(segment.task, []).append(segment.num_frames)
    return tuple(
        TaskCount(task, len(own), sum(own), min(own), float(np.median(own)), max(own))
        for task, own in sorted(lengths.items())
    )


def _scene_counts(existing: npt.NDArray[np.int64], scenes: Sequence[SceneFrames]) -> tuple[SceneCount, ...]:
    counts = []
    for scene in scenes:
        last = int(existing[-1]) if scene.last is None else scene.last
        inside = int(((existing >= scene.first) & (existing <= last)).sum())
        counts.append(SceneCount(scene.scene, scene.first, last, inside))
    return tuple(counts)
