"""Drives the arm as CALVIN does: relative actions add up on a target pose, inverse kinematics sets the joint servos.

Kinematics are of the Franka Panda with CALVIN's long fingers, in numpy alone. Link offsets and joint limits are Franka's
published ones; the tcp lies 0.14 m beyond the hand along its z axis.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Final

import numpy as np

from rfedge.data.frames import ACTION_SCALE
from rfedge.data.robot import LOWER_RAD, UPPER_RAD
from rfedge.envs.interface import ROBOT_STATE_SIZE, Float64Array, check_step
from rfedge.envs.playtable.layout import BASE_POSITION_M
from rfedge.messages import GRIPPER_OPEN, POSE_SIZE
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


_FINGER_MAX_M: Final = 0.04
NEUTRAL_ROBOT_OBS: Final = np.concatenate([tcp_pose(NEUTRAL_RAD), [2.0 * _FINGER_MAX_M], NEUTRAL_RAD, [GRIPPER_OPEN]])
_ARM_JOINTS: Final = tuple(f"panda_joint{index}" for index in range(1, 8))
_FINGER_JOINTS: Final = ("panda_finger_joint1", "panda_finger_joint2")
# CALVIN's arm covers 0.49 of the way to a new target within one control step, 0.76 within two.
_LAG_S: Final = 0.049
_MAX_SPEED_RAD_S: Final = 2.0
_MAX_TORQUE_NM: Final = 200.0  # so hard presses an arm that is blocked
# Its fingers close by 0.57 of the way within one control step, and grip hard enough for a 1 kg block to follow a full step.
_FINGER_LAG_S: Final = 0.0395
_GRIP_FORCE_N: Final = 200.0


class RobotControl:
    """Reads and commands the arm inside one MuJoCo model.

    The target pose is taken from the measured tcp in `restore` only; afterwards it moves by what is commanded, so a
    blocked arm presses harder with every step, up to its torque limit.
    """

    def __init__(self, model: Any) -> None:
        self._arm_qpos = np.array([int(model.joint(name).qposadr[0]) for name in _ARM_JOINTS])
        self._finger_qpos = np.array([int(model.joint(name).qposadr[0]) for name in _FINGER_JOINTS])
        self._arm_ctrl = np.array([int(model.actuator(name).id) for name in _ARM_JOINTS])
        self._finger_ctrl = np.array([int(model.actuator(name).id) for name in _FINGER_JOINTS])
        (arm_stiffness, self._arm_delay_s), (finger_stiffness, self._finger_delay_s) = (
            (model.actuator_gainprm[servos, 0], -model.actuator_biasprm[servos, 2] / model.actuator_gainprm[servos, 0])
            for servos in (self._arm_ctrl, self._finger_ctrl)
        )
        self._arm_lead_rad, self._finger_lead_m = _MAX_TORQUE_NM / arm_stiffness, _GRIP_FORCE_N / finger_stiffness
        self._target_pose: Float64Array = np.zeros(POSE_SIZE)
        self._joint_target: Float64Array = NEUTRAL_RAD.copy()
        self._reference: Float64Array = NEUTRAL_RAD.copy()
        self._finger_reference: Float64Array = np.full(2, _FINGER_MAX_M)
        self._gripper_action = GRIPPER_OPEN

    def restore(self, data: Any, robot_obs: Float64Array) -> None:
        """Put arm and fingers where `robot_obs` (15,) has them; its tcp pose is implied by its joints."""
        joints = robot_obs[7:14]
        data.qpos[self._arm_qpos] = joints
        data.qpos[self._finger_qpos] = 0.5 * robot_obs[6]
        self._gripper_action = GRIPPER_OPEN if robot_obs[14] > 0 else -GRIPPER_OPEN
        self._joint_target = joints.copy()
        self._reference = joints.copy()
        self._finger_reference = data.qpos[self._finger_qpos]
        data.ctrl[self._arm_ctrl] = joints
        data.ctrl[self._finger_ctrl] = self._finger_reference

    def anchor(self, data: Any) -> None:
        """Take the measured tcp as the target; called once after a restored state has settled."""
        self._target_pose = tcp_pose(data.qpos[self._arm_qpos])

    def command(self, data: Any, action: Float64Array) -> None:
        """Add one relative action (7,) to the target and set the servos."""
        action = check_step(action)
        self._target_pose = self._target_pose + ACTION_SCALE * action[:POSE_SIZE]
        self._gripper_action = float(action[POSE_SIZE])
        self._joint_target = inverse(self._target_pose, self._joint_target)

    def drive(self, data: Any, step_s: float) -> None:
        """Move the servos' references towards their targets; called before every physics step of `step_s` seconds."""
        self._drive_arm(data, step_s)
        self._drive_fingers(data, step_s)

    def _drive_arm(self, data: Any, step_s: float) -> None:
        joints = data.qpos[self._arm_qpos]
        speed = (self._joint_target - self._reference) / _LAG_S
        # All joints slow down together, which keeps the tcp near its straight path.
        speed *= min(1.0, _MAX_SPEED_RAD_S / max(float(np.abs(speed).max()), 1e-9))
        reference = np.clip(self._reference + step_s * speed, joints - self._arm_lead_rad, joints + self._arm_lead_rad)
        # Feeding the reference's own speed forward takes the servo's damping out of the lag.
        moved = (reference - self._reference) / step_s
        data.ctrl[self._arm_ctrl] = reference + self._arm_delay_s * moved
        self._reference = reference

    def _drive_fingers(self, data: Any, step_s: float) -> None:
        fingers = data.qpos[self._finger_qpos]
        target_m = _FINGER_MAX_M if self._gripper_action > 0 else 0.0
        reference = self._finger_reference + step_s / _FINGER_LAG_S * (target_m - self._finger_reference)
        reference = np.clip(reference, fingers - self._finger_lead_m, fingers + self._finger_lead_m)
        moved = (reference - self._finger_reference) / step_s
        data.ctrl[self._finger_ctrl] = reference + self._finger_delay_s * moved
        self._finger_reference = reference

    def measure(self, data: Any) -> Float64Array:
        joints = data.qpos[self._arm_qpos]
        state = np.empty(ROBOT_STATE_SIZE)
        state[:6] = tcp_pose(joints)
        # Pressed hard, the soft joint stops of both fingers give way by 12 to 17 mm in sum; CALVIN's widths are 0 to 0.08 m.
        state[6] = np.clip(data.qpos[self._finger_qpos].sum(), 0.0, 2.0 * _FINGER_MAX_M)
        state[7:14] = joints
        state[14] = self._gripper_action
        return state
