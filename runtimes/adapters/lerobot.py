"""A LeRobot robot as `rfedge.runtimes.robot.Robot`.

LeRobot's robots speak in dictionaries, `get_observation()` and `send_action(...)`, whose keys differ from robot to robot:
`LeRobotKeys` names them. The robot must accept Cartesian deltas of its tool, itself or through a wrapper with the same two
methods; joint positions are not what this policy predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from rfedge.errors import ConfigError, ContractError, explain
from rfedge.messages import (
    GRIPPER_IMAGE_SHAPE,
    GRIPPER_KEEP,
    POSE_SIZE,
    POSITION_SCALE_M,
    ROTATION_SCALE_RAD,
    STATE_SIZE,
    STATIC_IMAGE_SHAPE,
    Observation,
)
from rfedge.runtimes.adapters.images import fit_camera
from rfedge.runtimes.optional_library import import_optional

__all__ = ["LeRobotKeys", "LeRobotLike", "LeRobotRobot", "action_to_lerobot", "connect_lerobot", "observation_from_lerobot"]


@dataclass(frozen=True, slots=True)
class LeRobotKeys:
    """What one robot calls things, and its units.

    Attributes:
        static, gripper: cameras.
        state: the 15 numbers of `rfedge.messages`, in its order, or empty when the robot does not report them.
        pose: translation x y z and rotation x y z of the tool per control step.
        gripper_command: the gripper.
        metres_per_unit, radians_per_unit: what 1.0 means to the robot.
        gripper_closed, gripper_open: its two commands.
    """

    static: str = "front"
    gripper: str = "wrist"
    state: tuple[str, ...] = ()
    pose: tuple[str, ...] = ("delta_x", "delta_y", "delta_z", "delta_rx", "delta_ry", "delta_rz")
    gripper_command: str = "gripper"
    metres_per_unit: float = 1.0
    radians_per_unit: float = 1.0
    gripper_closed: float = 0.0
    gripper_open: float = 1.0

    def __post_init__(self) -> None:
        """Refuse lists of another length.

        Raises:
            ConfigError: not 6 names of the pose, or neither 0 nor 15 of the state.
        """
        for name, keys, sizes in (("pose", self.pose, (POSE_SIZE,)), ("state", self.state, (0, STATE_SIZE))):
            if len(keys) not in sizes:
                expected = " or ".join(str(size) for size in sizes)
                raise ConfigError(
                    explain(
                        f"LeRobotKeys.{name}", got=f"{len(keys)} names", expected=expected, remedy="See rfedge.messages."
                    )
                )


class LeRobotLike(Protocol):
    """The part of `lerobot.robots.Robot` that is used here."""

    @property
    def action_features(self) -> Mapping[str, Any]:
        """Names of the numbers that `send_action` takes."""

    def get_observation(self) -> Mapping[str, Any]:
        """Read cameras and sensors."""

    def send_action(self, action: dict[str, float]) -> Any:
        """Send one command."""


def observation_from_lerobot(fields: Mapping[str, Any], keys: LeRobotKeys) -> Observation:
    """Return the frame in a dictionary of `get_observation`; pictures are cut to a square and resized.

    Raises:
        ContractError: a key is missing, or a picture is not uint8 RGB.
    """
    missing = [key for key in (keys.static, keys.gripper, *keys.state) if key not in fields]
    if missing:
        raise ContractError(
            explain(
                "LeRobot observation",
                got=f"keys {sorted(fields)}",
                expected=f"also {missing}",
                remedy="Name this robot's cameras and sensors in LeRobotKeys.",
            )
        )
    return Observation(
        static=fit_camera(keys.static, np.asarray(fields[keys.static]), STATIC_IMAGE_SHAPE),
        gripper=fit_camera(keys.gripper, np.asarray(fields[keys.gripper]), GRIPPER_IMAGE_SHAPE),
        state=np.array([float(fields[key]) for key in keys.state]) if keys.state else None,
    )


def action_to_lerobot(action: npt.NDArray[np.float32], keys: LeRobotKeys) -> dict[str, float]:
    """Return the dictionary for `send_action` of an action (7,); one without a gripper command has no key for it."""
    pose = action[:POSE_SIZE].astype(np.float64)
    pose[:3] *= POSITION_SCALE_M / keys.metres_per_unit
    pose[3:] *= ROTATION_SCALE_RAD / keys.radians_per_unit
    command = dict(zip(keys.pose, pose.tolist(), strict=True))
    if action[POSE_SIZE] == GRIPPER_KEEP:
        return command
    return command | {keys.gripper_command: keys.gripper_open if action[POSE_SIZE] > 0 else keys.gripper_closed}


class LeRobotRobot:
    """Drives a connected LeRobot robot.

    Args:
        robot: connected; whoever connected it disconnects it.
        keys: what it calls things.

    Raises:
        ConfigError: the robot does not take one of the commands.
    """

    def __init__(self, robot: LeRobotLike, keys: LeRobotKeys | None = None) -> None:
        self._robot = robot
        self._keys = keys or LeRobotKeys()
        missing = [key for key in (*self._keys.pose, self._keys.gripper_command) if key not in robot.action_features]
        if missing:
            raise ConfigError(
                explain(
                    "LeRobot action",
                    got=f"a robot that takes {sorted(robot.action_features)}",
                    expected=f"also {missing}",
                    remedy="Name its commands in LeRobotKeys; a robot driven by joints needs a wrapper that takes deltas.",
                )
            )
        self._last: npt.NDArray[np.float32] | None = None

    def observe(self) -> Observation:
        """Read cameras and sensors.

        Raises:
            ContractError: see `observation_from_lerobot`.
        """
        return observation_from_lerobot(self._robot.get_observation(), self._keys)

    def apply(self, action: npt.NDArray[np.float32]) -> None:
        """Send one control step."""
        self._robot.send_action(action_to_lerobot(action, self._keys))
        self._last = action

    def stop(self) -> None:
        """Send zero motion with the gripper as it was last sent; before the first action nothing moves."""
        if self._last is not None:
            hold = np.zeros_like(self._last)
            hold[POSE_SIZE] = self._last[POSE_SIZE]
            self._robot.send_action(action_to_lerobot(hold, self._keys))


def connect_lerobot(config: Any, keys: LeRobotKeys | None = None) -> LeRobotRobot:
    """Make and connect the robot of a `lerobot.robots.RobotConfig`.

    Raises:
        BackendUnavailableError: lerobot is not installed.
        ConfigError: see `LeRobotRobot`.
    """
    robots = import_optional("lerobot.robots", needed_for="LeRobot robot", remedy="pip install lerobot.")
    robot = robots.make_robot_from_config(config)
    robot.connect()
    return LeRobotRobot(cast(LeRobotLike, robot), keys)
