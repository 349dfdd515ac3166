"""One action in metres and radians, as a robot takes it: its rotation is a rotation vector in the world frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rfedge.errors import ContractError
from rfedge.messages import POSE_SIZE, POSITION_SCALE_M, ROTATION_SCALE_RAD, FloatArray
from rfedge.robot.rotations import rotation_vectors

__all__ = ["tool_step"]

Float64Array = npt.NDArray[np.float64]


def tool_step(action: FloatArray, euler_rad: FloatArray | None) -> tuple[Float64Array, Float64Array]:
    """Return translation (3,) in metres and rotation vector (3,) in radians, world frame, of an action (7,).

    The policy's droll, dpitch, dyaw are steps of Euler angles. As a rotation they depend on where the tool points: with it
    turned down and by 90 degrees, a droll turns about the world's y axis.

    Args:
        euler_rad: (3,) fixed-axis xyz angles of the tool as measured, or None where nobody measures them.

    Raises:
        ContractError: the action rotates and nobody knows from where.
    """
    step = action[:POSE_SIZE].astype(np.float64)
    translation_m, steps_rad = POSITION_SCALE_M * step[:3], ROTATION_SCALE_RAD * step[3:]
    if euler_rad is not None:
        return translation_m, rotation_vectors(np.asarray(euler_rad, dtype=np.float64), steps_rad)
    if steps_rad.any():
        raise ContractError(
            "rotation of an action",
            got="no measured orientation of the tool",
            expected="its fixed-axis xyz angles: a step of Euler angles is another rotation in every posture",
            remedy="Let the robot report its pose (ROS 2: pose_topic, LeRobot: LeRobotKeys.state or .rotation).",
        )
    return translation_m, np.zeros(3)
