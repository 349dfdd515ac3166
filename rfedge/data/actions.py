"""CALVIN's rule between absolute poses and relative actions.

Source: CALVIN's dataset and environment definitions (0.02 m and 0.05 rad a unit, componentwise in the world frame).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rfedge.data.frames import Array, Float64Array
from rfedge.messages import POSE_SIZE, POSITION_SCALE_M, ROTATION_SCALE_RAD
from rfedge.robot.rotations import wrap_angle

# Metres and radians per unit of a relative action.
ACTION_SCALE: Final = np.array([POSITION_SCALE_M] * 3 + [ROTATION_SCALE_RAD] * 3)


def pose_differences(robot_obs: Array, poses: Array) -> Float64Array:
    """Return float64 (..., 6): the way from the measured pose to `poses` (..., >= 6), in units, not clipped."""
    difference = np.asarray(poses, dtype=np.float64)[..., :POSE_SIZE] - robot_obs[..., :POSE_SIZE]
    difference[..., 3:] = wrap_angle(difference[..., 3:])
    return np.asarray(difference / ACTION_SCALE)


def relative_actions(robot_obs: Array, actions: Array) -> Float64Array:
    """Turn absolute actions (..., 7) into relative ones, float64 (..., 7), clipped to [-1, 1]."""
    relative = np.array(actions, dtype=np.float64)
    relative[..., :POSE_SIZE] = np.clip(pose_differences(robot_obs, actions), -1.0, 1.0)
    return relative


def absolute_actions(robot_obs: Array, rel_actions: Array) -> Float64Array:
    """Turn relative actions into the poses that they ask for; the inverse of `relative_actions` where nothing is clipped."""
    absolute = np.array(rel_actions, dtype=np.float64)
    absolute[..., :POSE_SIZE] = robot_obs[..., :POSE_SIZE] + absolute[..., :POSE_SIZE] * ACTION_SCALE
    absolute[..., 3:POSE_SIZE] = wrap_angle(absolute[..., 3:POSE_SIZE])
    return absolute
