"""Faults of consecutive frames: actions that do not say what the arm did, and cameras that repeat one picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.data.frames import ACTION_SCALE, Array, frame_name
from rfedge.data.inspection.frames import PICTURES, CheckedFrames, Finding
from rfedge.data.inspection.motion import GripSums, MotionSums, Tolerance
from rfedge.messages import POSE_SIZE
from rfedge.robot.rotations import wrap_angle

# CALVIN's own rel_actions are the way to a target that the arm follows late: far shorter motion than commanded is no damage.
LENIENT: Final = Tolerance(clear=(0.1, 1.5), loose=(0.1, 2.0))
_LONGEST_RUN: Final = 4096  # a longer one is looked at in parts
# A third of a second at 30 Hz. Resampling repeats a picture a few times at most.
_FEWEST_EQUAL: Final = 10
# Asked or measured motion during which a picture has to change: 2 mm and a little turn.
_SEEN_MOTION: Final = 0.002
_SAME_MOTION: Final = "about 1: units, sign or axes"
_CLIPPED: Final = 0.999
# The arm still comes after its commands for so long.
_SETTLES_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class RunRules:
    frequency_hz: float  # of the frames
    tolerance: Tolerance = LENIENT  # for measured motion per commanded motion
    allowed: tuple[str, ...] = ()  # "motion", "gripper": disagreements that are known and wanted
    absent: tuple[str, ...] = ()  # image keys that are known to be black


class RunChecks:
    """Gathers frames into runs of consecutive numbers; a run ends before each of `starts`, the first frames of episodes."""

    def __init__(self, rules: RunRules, starts: Iterable[int]) -> None:
        self._rules = rules
        self._starts = frozenset(starts)
        self._motion = MotionSums(rules.frequency_hz)
        self._grip = GripSums(rules.frequency_hz)
        self._frozen: list[Finding] = []
        self._longest_rest: dict[str, int] = {}
        self._numbers: list[int] = []
        self._rows: list[tuple[Array, Array, Array]] = []

    def add(self, checked: CheckedFrames) -> None:
        """Add frames that come after those added before."""
        columns = (checked.values["robot_obs"], checked.values["rel_actions"], checked.pictures)
        for is_sound, number, *row in zip(checked.sound, checked.numbers.tolist(), *columns, strict=True):
            if not is_sound:  # its damage is listed already
                continue
            follows = self._numbers and number == self._numbers[-1] + 1 and number not in self._starts
            if not follows or len(self._numbers) == _LONGEST_RUN:
                self._close()
            self._numbers.append(number)
            self._rows.append((row[0], row[1], row[2]))

    def result(self) -> tuple[list[Finding], list[str], dict[str, float]]:
        """Return damage, notes, and measured motion per commanded motion of each group that moved."""
        self._close()
        texts = [("motion", text) for text in self._motion_texts()]
        texts += [("gripper", text) for text in self._gripper_texts()]
        findings = [
            Finding("rel_actions", got, expected) for kind, (got, expected) in texts if kind not in self._rules.allowed
        ]
        notes = [f"allowed at conversion: {got}" for kind, (got, _) in texts if kind in self._rules.allowed]
        notes += [
            f"{key} shows one picture in up to {count} frames in a row, while the arm rests"
            for key, count in sorted(self._longest_rest.items())
        ]
        return findings + self._frozen, notes, {fit.group: fit.factor for fit in self._motion.fits()}

    def _close(self) -> None:
        if len(self._numbers) > 1:
            robot_obs, rel_actions, pictures = (np.stack(column) for column in zip(*self._rows, strict=True))
            measured = np.diff(robot_obs[:, :POSE_SIZE], axis=0)
            measured[:, 3:] = wrap_angle(measured[:, 3:])
            asked = rel_actions[:-1, :POSE_SIZE] * ACTION_SCALE
            self._motion.add(asked, measured, self._says_how_far(rel_actions[:-1, :POSE_SIZE]))
            self._grip.add(rel_actions[:, POSE_SIZE], robot_obs[:, POSE_SIZE])
            motion = np.maximum(np.abs(asked), np.abs(measured)).sum(axis=1)
            self._look_for_repeats(pictures, motion)
        self._numbers, self._rows = [], []

    def _says_how_far(self, rel_actions: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which steps (T,) ask for all of the motion that follows: none clipped, nor soon after one that was."""
        clipped: npt.NDArray[np.bool_] = np.abs(rel_actions).max(axis=1) >= _CLIPPED
        after = clipped.copy()
        for frames in range(1, round(_SETTLES_S * self._rules.frequency_hz) + 1):
            after[frames:] |= clipped[:-frames]
        return ~after

    def _look_for_repeats(self, pictures: npt.NDArray[np.uint64], motion: npt.NDArray[np.float64]) -> None:
        for key, column in zip(PICTURES, pictures.T, strict=True):
            if key in self._rules.absent:
                continue
            bounds = np.concatenate(([0], np.flatnonzero(np.diff(column)) + 1, [len(column)]))
            for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                count = stop - first
                if count < _FEWEST_EQUAL:
                    continue
                if motion[first : stop - 1].sum() < _SEEN_MOTION:
                    self._longest_rest[key] = max(self._longest_rest.get(key, 0), count)
                    continue
                names = f"{frame_name(self._numbers[first])} to {frame_name(self._numbers[stop - 1])}"
                what = f"{key}: one picture in all {count} frames, while the arm moves or is asked to"
                self._frozen.append(Finding(names, what, "pictures that change: a frozen camera, or frames that repeat"))

    def _motion_texts(self) -> list[tuple[str, str]]:
        fits = self._motion.fits() if self._motion.moved() else ()
        found = [wrong for fit in fits if (wrong := fit.disagreement(self._rules.tolerance)) is not None]
        return [
            (f"{axes}: {' and '.join(f'{factor:.3g}' for factor in factors)} times the commanded one", _SAME_MOTION)
            for axes, factors, _ in found
        ]

    def _gripper_texts(self) -> list[tuple[str, str]]:
        fit = self._grip.fit()
        if fit.is_inverted:
            return [("gripper: the fingers close when it opens", "-1 closes, 1 opens")]
        if fit.never_crosses:
            got = f"gripper: {fit.command} in every frame while the fingers move {fit.moved_m:.3f} m"
            return [(got, "a command that changes")]
        return []


def in_blocks(numbers: npt.NDArray[np.int64], count: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Choose `count` of sorted `numbers` in blocks of up to `size` neighbours, so that runs can be looked at."""
    num_blocks = -(-len(numbers) // size)
    order: Sequence[int] = rng.permutation(num_blocks).tolist()
    chosen = np.concatenate([numbers[block * size : (block + 1) * size] for block in order[: -(-count // size) + 1]])
    return np.sort(chosen[:count])
