"""Forward and inverse kinematics of the Franka Panda with CALVIN's long fingers, in numpy alone.

Link offsets and joint limits are Franka's published ones; the tcp lies 0.14 m beyond the hand along its z axis.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final

import numpy as np

from rfedge.data.robot import LOWER_RAD, UPPER_RAD
from rfedge.envs.interface import Float64Array
from rfedge.envs.playtable.layout import BASE_POSITION_M
from rfedge.robot.rotations import euler_to_matrix, matrix_to_euler, rotation_vector

HAND_OFFSET_M: Final = 0.107  # from the last joint frame to the hand, along z
HAND_EULER_RAD: Final = (0.0, 0.0, -math.pi / 4)
TCP_OFFSET_M: Final = 0.14  # from the hand to the tcp, along z

NEUTRAL_RAD: Final = np.array([-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866])


def _read_frames() -> list[tuple[Float64Array, Float64Array]]:
    """Return position and rotation of each joint's frame in the one before it; every joint turns about its z."""
    bodies = {body.get("name"): body for body in ET.parse(Path(__file__).with_name("scene.xml")).iter("body")}
    links = (bodies[f"robot/panda_link{index}"] for index in range(1, 8))
    frames = ([np.array(link.attrib[name].split(), dtype=np.float64) for name in ("pos", "euler")] for link in links)
    return [(xyz, euler_to_matrix(rpy)) for xyz, rpy in frames]


_FRAMES: Final = _read_frames()
_HAND: Final = euler_to_matrix(np.array(HAND_EULER_RAD))

_ITERATIONS: Final = 12
_DAMPING: Final = 0.03
_REST_GAIN: Final = 0.02
# One iteration may turn a joint this far: keeps the solver from jumping to another elbow posture near a singularity.
_MAX_TURN_RAD: Final = 0.2


def forward(joints_rad: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return tcp position (3,) in metres, tcp rotation (3, 3) and the Jacobian (6, 7) in world axes."""
    position, rotation = np.array(BASE_POSITION_M), np.eye(3)
    origins, axes = np.empty((7, 3)), np.empty((7, 3))
    for index, (offset, turn) in enumerate(_FRAMES):
        position = position + rotation @ offset
        rotation = rotation @ turn
        origins[index], axes[index] = position, rotation[:, 2]
        cos, sin = math.cos(joints_rad[index]), math.sin(joints_rad[index])
        rotation = rotation @ np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    position = position + rotation[:, 2] * (HAND_OFFSET_M + TCP_OFFSET_M)
    jacobian = np.vstack([np.cross(axes, position - origins).T, axes.T])
    return position, rotation @ _HAND, jacobian


def tcp_pose(joints_rad: Float64Array) -> Float64Array:
    """Return tcp xyz in metres and fixed-axis euler xyz in radians, (6,)."""
    position, rotation, _ = forward(joints_rad)
    return np.concatenate([position, matrix_to_euler(rotation)])


def inverse(pose: Float64Array, start_rad: Float64Array, *, iterations: int = _ITERATIONS) -> Float64Array:
    """Return joints (7,) within their limits that bring the tcp to `pose` (6,), searched from `start_rad`.

    Damped least squares; what the tcp leaves free is pulled towards the neutral joints, as CALVIN does. The same input
    always gives the same output. A pose out of reach gives the nearest joints that the search found.
    """
    goal_position, goal_rotation = pose[:3], euler_to_matrix(pose[3:6])
    joints = np.clip(start_rad, LOWER_RAD, UPPER_RAD)
    for _ in range(iterations):
        position, rotation, jacobian = forward(joints)
        error = np.concatenate([goal_position - position, rotation_vector(goal_rotation @ rotation.T)])
        left, stretch, right = np.linalg.svd(jacobian)
        gain = stretch / (stretch**2 + _DAMPING**2)
        # The last right vector is the motion of the elbow alone: only along it does the pull leave the tcp in place.
        elbow = right[6]
        pull = _REST_GAIN * float(elbow @ (NEUTRAL_RAD - joints))
        change = right[:6].T @ (gain * (left.T @ error)) + pull * elbow
        joints = np.clip(joints + np.clip(change, -_MAX_TURN_RAD, _MAX_TURN_RAD), LOWER_RAD, UPPER_RAD)
    return joints
