"""Looks for everything that can be wrong with the index files of a split, and for frames that they name in vain."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.data.calvin import Segment, read_index_array
from rfedge.data.frames import SCENE_SIZE, frame_name
from rfedge.data.inspection.frames import Finding
from rfedge.data.object_file import read_object_file
from rfedge.data.scene.scenes import SCENE_INFO_FILE, SceneFrames
from rfedge.errors import DatasetError
from rfedge.messages import ACTION_SIZE, STATE_SIZE

Int64Array = npt.NDArray[np.int64]

# CALVIN finds segments with windows of 64 frames and writes (first, first + 64): 65 frames when the end is inclusive.
LONGEST_SEGMENT: Final = 65
_LENGTHS_FILE: Final = "ep_lens.npy"
_MODALITY_SIZES: Final = {"robot_obs": STATE_SIZE, "scene_obs": SCENE_SIZE}


def check_episodes(folder: Path, episodes: Sequence[tuple[int, int]]) -> list[Finding]:
    """Compare the episodes with each other and with ep_lens.npy."""
    name = "ep_start_end_ids.npy"
    if not episodes:
        return [Finding(name, "no file", "first and last frame of each episode")]
    findings = []
    ordered = sorted(episodes)
    for (first, last), (after, until) in itertools.pairwise(ordered):
        if after <= last:
            findings.append(
                Finding(name, f"episodes {first} to {last} and {after} to {until} share frames", "disjoint ones")
            )
    path = folder / _LENGTHS_FILE
    if path.is_file():
        try:
            lengths = read_index_array(path)
        except DatasetError as error:
            return [*findings, Finding(path.name, error.got, error.expected)]
        bounds = np.array(episodes)
        expected = bounds[:, 1] - bounds[:, 0] + 1
        # Both ways of counting are in use: with the last frame, and as the difference of the bounds.
        if lengths.shape != expected.shape or not any(np.array_equal(lengths, expected - less) for less in (0, 1)):
            findings.append(Finding(path.name, "other lengths than the episodes have", "one length per episode"))
    return findings


def check_segments(segments: Sequence[Segment], episodes: Sequence[tuple[int, int]], file: str) -> list[Finding]:
    """List segments that are too long or lie outside of every episode."""
    findings = []
    ordered = np.array(sorted(episodes), dtype=np.int64).reshape(-1, 2)
    for number, segment in enumerate(segments):
        subject = f"segment {number} ({segment.task}, frames {segment.start} to {segment.end})"
        if segment.num_frames > LONGEST_SEGMENT:
            findings.append(Finding(file, f"{subject}: {segment.num_frames} frames", "at most 64, or 65 as CALVIN counts"))
        if len(ordered):
            place = int(np.searchsorted(ordered[:, 0], segment.start, side="right")) - 1
            if place < 0 or segment.end > ordered[place, 1]:
                findings.append(Finding(file, f"{subject}: outside of every episode", "all of it inside one episode"))
    return findings


def check_missing_frames(
    existing: Int64Array, episodes: Sequence[tuple[int, int]], segments: Sequence[Segment]
) -> list[Finding]:
    """List frames that an index names and the folder lacks, one finding per run of consecutive numbers."""
    spans = [*episodes, *((segment.start, segment.end) for segment in segments)]
    named = np.unique(np.concatenate([np.arange(first, last + 1) for first, last in spans] or [np.empty(0, np.int64)]))
    missing = np.setdiff1d(named, existing, assume_unique=True)
    runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if len(missing) else []
    return [_run_finding(int(run[0]), int(run[-1])) for run in runs]


def _run_finding(first: int, last: int) -> Finding:
    if first == last:
        return Finding(frame_name(first), "no file", "a frame that the index names")
    return Finding(
        f"{frame_name(first)} to {frame_name(last)}", f"{last - first + 1} missing files", "frames that the index names"
    )


def check_scenes(existing: Int64Array, scenes: Sequence[SceneFrames]) -> list[Finding]:
    """List scenes that share frames, and frames that belong to none although there is a scene file."""
    findings = []
    for before, after in itertools.pairwise(scenes):
        if before.last is not None and after.first <= before.last:
            what = f"scenes {before.scene} and {after.scene} share frames {after.first} to {before.last}"
            findings.append(Finding(SCENE_INFO_FILE, what, "disjoint scenes"))
    if scenes:
        covered = np.zeros(len(existing), dtype=np.bool_)
        for scene in scenes:
            covered |= (existing >= scene.first) & (existing <= (scene.last if scene.last is not None else existing.max()))
        if len(existing) and not covered.all():
            lost = existing[~covered]
            what = f"{len(lost)} frames, {lost[0]} to {lost[-1]}, belong to no scene"
            findings.append(
                Finding(SCENE_INFO_FILE, what, "a scene for every frame; see CALVIN's changelog for mended files")
            )
    return findings


def check_embeddings(path: Path, num_segments: int) -> list[Finding]:
    """Check the sentence embeddings of one annotation file: float (N, 1, D), or (N, D), for N segments."""
    name = f"{path.parent.name}/{path.name}"
    try:
        language = read_object_file(path).get("language")
    except DatasetError as error:
        return [Finding(name, error.got, "a pickled dict of annotations")]
    embeddings = language.get("emb") if isinstance(language, dict) else None
    if not isinstance(embeddings, np.ndarray) or embeddings.dtype.kind != "f" or len(embeddings) != num_segments:
        shape = f"{embeddings.dtype} {embeddings.shape}" if isinstance(embeddings, np.ndarray) else "none"
        return [Finding(name, f"sentence embeddings: {shape}", f"float ({num_segments}, 1, D)")]
    return []


def parse_statistics(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Read statistics.yaml: "mean" and "std" of each modality, float64, and the action bounds; and what is wrong with it."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        parsed: dict[str, Any] = {}
        for key, size in _MODALITY_SIZES.items():
            for transform in document.get(key) or ():
                if "mean" in transform:
                    parsed[key] = {name: _numbers(transform[name], size) for name in ("mean", "std")}
        for key in ("act_max_bound", "act_min_bound"):
            if key in document:
                parsed[key] = _numbers(document[key], ACTION_SIZE)
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        return {}, [Finding(path.name, f"an unreadable file ({reason})", "means and deviations of robot_obs and scene_obs")]
    return parsed, []


def _numbers(values: Any, size: int) -> npt.NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    if array.shape != (size,):
        raise ValueError(f"{array.shape} numbers where {size} belong")
    return array
