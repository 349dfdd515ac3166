"""Brings an episode from the source's frequency to another one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rfedge.data.frames import Float64Array
from rfedge.robot.rotations import wrap_angle


class FrameTimes(NamedTuple):
    """Where the new frames lie among the old ones, in old frames."""

    starts: Float64Array  # (N,) beginning of each new control step
    ends: Float64Array
    held: npt.NDArray[np.int64]  # (N,) last old frame at or before each new one


def frame_times(num_frames: int, old_hz: float, new_hz: float) -> FrameTimes:
    """Cut the time of `num_frames` control steps at `old_hz` into steps at `new_hz`; a rest shorter than one is lost."""
    step = old_hz / new_hz
    count = max(int(num_frames / step + 1e-9), 1)
    bounds: Float64Array = np.asarray(step * np.arange(count + 1), dtype=np.float64)
    held = np.minimum(np.floor(bounds[:-1] + 1e-9).astype(np.int64), num_frames - 1)
    return FrameTimes(bounds[:-1], bounds[1:], held)


def resample_values(times: Float64Array, values: Float64Array) -> Float64Array:
    """Interpolate (T, n) values that belong to the frames 0, 1, ...; after the last frame its value stays."""
    old = np.arange(len(values))
    return np.stack([np.interp(times, old, column) for column in values.T], axis=1)


def resample_poses(times: Float64Array, poses: Float64Array) -> Float64Array:
    """Interpolate (T, 6) positions in m, and angles in rad along the shorter way round."""
    angles_rad = wrap_angle(resample_values(times, np.unwrap(poses[:, 3:], axis=0)))
    return np.concatenate((resample_values(times, poses[:, :3]), angles_rad), axis=1)


def resample_steps(times: FrameTimes, steps: Float64Array) -> Float64Array:
    """Turn (T, n) steps, one a frame, into steps of other length along the same path."""
    path = np.concatenate((np.zeros((1, steps.shape[1])), np.cumsum(steps, axis=0)))
    return resample_values(times.ends, path) - resample_values(times.starts, path)
