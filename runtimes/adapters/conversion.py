"""Pictures of any camera and actions of the policy, each as the other side takes them."""

from __future__ import annotations

import numpy as np

from rfedge.arrays import Array, Float64
from rfedge.errors import ContractError
from rfedge.messages import POSE_SIZE, POSITION_SCALE_M, ROTATION_SCALE_RAD, FloatArray, UInt8Array
from rfedge.robot.camera import DEFAULT_RESIZE, check_resize, fit_image
from rfedge.robot.rotations import rotation_vectors

__all__ = ["fit_camera", "tool_step"]


def fit_camera(name: str, image: Array, shape: tuple[int, int, int], resize: str = DEFAULT_RESIZE) -> UInt8Array:
    """Return a copy of a camera's uint8 (height, width, 3) RGB as `shape`, by the policy's geometry (`rfedge.robot.camera`).

    Raises:
        ContractError: the image has another dtype or number of axes or colours.
        ConfigError: no geometry is called `resize`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        expected, remedy = "uint8 (height, width, 3) RGB", "Convert the picture to RGB bytes."
        raise ContractError(f"camera {name!r}", got=f"{image.dtype} {image.shape}", expected=expected, remedy=remedy)
    # Copied first: a camera's driver may write into its buffer while an overlapped inference reads the picture.
    return fit_image(image.copy(), shape, check_resize(resize))


def tool_step(action: FloatArray, euler_rad: FloatArray | None) -> tuple[Float64, Float64]:
    """Return translation (3,) in metres and rotation vector (3,) in radians, world frame, of an action (7,).

    The policy's droll, dpitch, dyaw are steps of Euler angles. As a rotation they depend on where the tool points
    (`euler_rad`, (3,), fixed-axis xyz angles): turned down and by 90 degrees, a droll turns about the world's y axis.

    Raises:
        ContractError: the action rotates and nobody measures from where.
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
