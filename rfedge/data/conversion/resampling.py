"""Brings an episode from the source's frequency to another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rfedge.data.frames import Float64Array
from rfedge.robot.rotations import wrap_angle


class FrameTimes:
    """Where the new frames lie among the old ones, in old frames."""

    def __init__(self, starts: npt.NDArray[np.floating[Any]], ends: npt.NDArray[np.floating[Any]], num_old: int) -> None:
        # starts, ends: float64 (N,) beginning and end of each new control step
        self.starts = np.asarray(starts, dtype=np.float64)
        self.ends = np.asarray(ends, dtype=np.float64)
        # int64 (N,) last old frame at or before each new one
        self.held: npt.NDArray[np.int64] = np.minimum(np.floor(starts + 1e-9).astype(np.int64), num_old - 1)


def frame_times(num_frames: int, old_hz: float, new_hz: float) -> FrameTimes:
    """Cut the time of `num_frames` control steps at `old_hz` into steps at `new_hz`; a rest shorter than one is lost."""
    step = old_hz / new_hz
    count = max(int(num_frames / step + 1e-9), 1)
    return FrameTimes(step * np.arange(count), step * np.arange(1, count + 1), num_frames)


def resample_values(times: Float64Array, values: Float64Array) -> Float64Array:
    """Interpolate (T, n) values that belong to the frames 0, 1, ...; after the last frame its value stays."""
    old = np.arange(len(values))
    return np.stack([np.interp(times, old, column) for column in values.T], axis=1)


def resample_angles(times: Float64Array, angles_rad: Float64Array) -> Float64Array:
    """Interpolate (T, n) angles along the shorter way round."""
    return wrap_angle(resample_values(times, np.unwrap(angles_rad, axis=0)))


def resample_steps(times: FrameTimes, steps: Float64Array) -> Float64Array:
    """Turn (T, n) steps, one a frame, into steps of other length along the same path."""
    path = np.concatenate((np.zeros((1, steps.shape[1])), np.cumsum(steps, axis=0)))
    return resample_values(times.ends, path) - resample_values(times.starts, path)
