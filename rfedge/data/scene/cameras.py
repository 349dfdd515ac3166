"""CALVIN's two cameras: where in a picture a point of the workspace appears.

The static camera stands still; the gripper's rides on the hand, so its pose follows from the tcp's. Places in a picture are
(u, v) in shares of its width and height from the upper left corner; outside [0, 1] a point is not in view.
Source: CALVIN's camera configuration and its Panda's URDF.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rfedge.data.frames import Float64Array
from rfedge.robot.rotations import euler_to_matrix

STATIC_EYE_M: Final = np.array([2.871459009488717, -2.166602199425597, 2.555159848480571])
_STATIC_TARGET_M: Final = np.array([-0.026242351159453392, -0.0302329882979393, 0.3920000493526459])
_STATIC_UP: Final = np.array([0.4041403970338857, 0.22629790978217404, 0.8862616969685161])
STATIC_FOV_DEG: Final = 10.0  # vertical, as the next
GRIPPER_FOV_DEG: Final = 75.0
_TCP_BEYOND_HAND_M: Final = 0.14
MOUNT_POSITION_M: Final = np.array([-0.1, 0.0, 0.0])  # in the frame of the hand
MOUNT_EULER_RAD: Final = (1.3, 0.0, -1.57)
_NEAREST_M: Final = 0.01


def _looking(forward: Float64Array, up: Float64Array) -> Float64Array:
    """Return the camera's right, down and forward axes as the rows of a matrix."""
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


STATIC_AXES: Final = _looking(_STATIC_TARGET_M - STATIC_EYE_M, _STATIC_UP)
# The mount looks along its own +y and its picture's upper side is -z.
_MOUNT_FROM_CAMERA: Final = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
_MOUNT_AXES: Final = _MOUNT_FROM_CAMERA @ euler_to_matrix(np.array(MOUNT_EULER_RAD)).T


def project_static(points_m: Float64Array) -> Float64Array:
    """World points (..., 3) -> (..., 2) in the static camera's picture."""
    return _pinhole((points_m - STATIC_EYE_M) @ STATIC_AXES.T, STATIC_FOV_DEG)


def project_gripper(points_m: Float64Array, tcp_pose: Float64Array) -> Float64Array:
    """World points (N, L, 3) -> (N, L, 2) in the picture of the hand at `tcp_pose` (N, 6), m and rad; NaN behind it."""
    hand = euler_to_matrix(tcp_pose[:, 3:6])
    from_tcp = (points_m - tcp_pose[:, None, :3]) @ hand  # into the frame of the hand
    from_tcp[..., 2] += _TCP_BEYOND_HAND_M
    return _pinhole((from_tcp - MOUNT_POSITION_M) @ _MOUNT_AXES.T, GRIPPER_FOV_DEG)


def _pinhole(seen_m: Float64Array, fov_deg: float) -> Float64Array:
    depth = np.where(seen_m[..., 2:] > _NEAREST_M, seen_m[..., 2:], np.nan)
    uv: Float64Array = 0.5 + 0.5 * seen_m[..., :2] / (depth * np.tan(0.5 * np.radians(fov_deg)))
    return uv
