"""Looks for everything that can be wrong with single frames, without stopping at the first mistake."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.data.frames import FRAME_KEYS, FRAME_SHAPES, Array, array_problem, frame_name, load_arrays, relative_actions
from rfedge.data.robot import state_problem
from rfedge.errors import DatasetError

# Arrays whose spread a report shows.
CHECKED_VALUES: Final = ("robot_obs", "scene_obs", "rel_actions")
PICTURES: Final = ("rgb_static", "rgb_gripper")
# Of a unit of 0.02 m or 0.05 rad: far above what float32 loses, far below what a wrong scale or frame shift makes.
_ACTION_TOLERANCE: Final = 0.01
_BLACK: Final = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One damage: the file, what was found in it and what was expected."""

    file: str
    what: str
    expected: str


@dataclass(frozen=True, slots=True)
class FrameChecks:
    """Checks beyond shapes and ranges."""

    # whether rel_actions must follow from actions and robot_obs by CALVIN's rule; it does not where rel_actions are the
    # commands that were sent and actions the poses that were reached
    compare_actions: bool = True
    absent: tuple[str, ...] = ()  # image keys that are known to be black, because there was no such camera


@dataclass(frozen=True, slots=True, eq=False)
class CheckedFrames:
    numbers: npt.NDArray[np.int64]  # int64 (N,) frames whose numeric arrays are all usable
    values: dict[str, Array]  # per key of CHECKED_VALUES float64 (N, size)
    sound: npt.NDArray[np.bool_]  # bool (N,) whether nothing at all was found in a frame
    pictures: npt.NDArray[np.uint64]  # uint64 (N, 2), equal for equal pictures, per key of PICTURES
    findings: tuple[Finding, ...]  # damage, in the order of the frames
    size_bytes: int
    num_files: int  # how many files that are


def check_frames(folder: Path, checks: FrameChecks, numbers: Sequence[int]) -> CheckedFrames:
    """Read and check the frames `numbers` below `folder`; damage is collected, never raised."""
    usable: list[int] = []
    rows: dict[str, list[Array]] = {key: [] for key in CHECKED_VALUES}
    pictures: list[list[int]] = []
    sound: list[bool] = []
    findings: list[Finding] = []
    size_bytes = 0
    for number in numbers:
        path = folder / frame_name(number)
        try:
            size_bytes += path.stat().st_size
            frame = load_arrays(path, FRAME_KEYS)
        except (DatasetError, OSError) as error:
            findings.append(_unreadable(path, error))
            continue
        wrong = [problem for key, array in frame.items() if (problem := array_problem(key, array)) is not None]
        problems = [Finding(path.name, f"{problem.subject}: {problem.got}", problem.expected) for problem in wrong]
        problems = problems or _content_findings(path.name, frame, checks)
        findings += problems
        if all(array_problem(key, frame[key]) is None for key in CHECKED_VALUES):
            usable.append(number)
            sound.append(not problems)
            pictures.append([zlib.crc32(np.ascontiguousarray(frame[key]).tobytes()) for key in PICTURES])
            for key, values in rows.items():
                values.append(frame[key])
    stacked = {
        key: np.stack(values).astype(np.float64) if values else np.empty((0, *FRAME_SHAPES[key]))
        for key, values in rows.items()
    }
    return CheckedFrames(
        numbers=np.array(usable, dtype=np.int64),
        values=stacked,
        sound=np.array(sound, dtype=np.bool_),
        pictures=np.array(pictures, dtype=np.uint64).reshape(-1, len(PICTURES)),
        findings=tuple(findings),
        size_bytes=size_bytes,
        num_files=len(numbers),
    )


def _unreadable(path: Path, error: DatasetError | OSError) -> Finding:
    if isinstance(error, DatasetError):
        return Finding(path.name, error.got, error.expected)
    return Finding(path.name, str(error), "a readable file")


def _content_findings(name: str, frame: dict[str, Array], checks: FrameChecks) -> list[Finding]:
    findings = []
    if (problem := state_problem(frame["robot_obs"])) is not None:
        findings.append(Finding(name, f"{problem.subject}: {problem.got} (another robot?)", problem.expected))
    for key in PICTURES:
        low, high = int(frame[key].min()), int(frame[key].max())
        if key in checks.absent:
            continue
        if high <= _BLACK:
            findings.append(Finding(name, f"{key}: a black image", "a picture"))
        elif low == high:
            findings.append(Finding(name, f"{key}: every byte {low}", "a picture"))
    if checks.compare_actions:
        off = np.abs(relative_actions(frame["robot_obs"], frame["actions"]) - frame["rel_actions"])
        worst = int(off.argmax())
        if off[worst] > _ACTION_TOLERANCE:
            what = f"rel_actions[{worst}]: {off[worst]:.3f} off what actions and robot_obs give"
            findings.append(Finding(name, what, "clip((actions - robot_obs) / (0.02 m, 0.05 rad), -1, 1)"))
    return findings
