"""A LeRobot robot as `rfedge.runtimes.control.robot.Robot`.

LeRobot's robots speak in dictionaries, `get_observation()` and `send_action(...)`, whose keys differ from robot to robot:
`LeRobotKeys` names them. The robot must accept Cartesian deltas of its tool, itself or through a wrapper with the same two
methods; joint positions are not what this policy predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import numpy as np

from rfedge.arrays import Float32, Float64
from rfedge.errors import BackendUnavailableError, ConfigError, ContractError, one_of
from rfedge.messages import (
    GRIPPER_IMAGE_SHAPE,
    GRIPPER_KEEP,
    POSE_SIZE,
    ROTATION_SCALE_RAD,
    STATE_SIZE,
    STATIC_IMAGE_SHAPE,
    FloatArray,
    Observation,
)
from rfedge.robot.camera import DEFAULT_RESIZE, check_resize
from rfedge.robot.conventions import Conventions
from rfedge.robot.rotations import vectors_to_euler
from rfedge.runtimes.adapters.conversion import fit_camera, tool_step
from rfedge.runtimes.backends.optional_library import import_optional
from rfedge.runtimes.control.clock import Clock, MonotonicClock
from rfedge.runtimes.control.stillness import Stillness

__all__ = ["LeRobotKeys", "LeRobotLike", "LeRobotRobot", "action_to_lerobot", "connect_lerobot", "observation_from_lerobot"]

ROTATION_FORMS: Final = ("euler", "axis-angle")


@dataclass(frozen=True, slots=True)
class LeRobotKeys:
    """Names and units of one robot.

    Attributes:
        state: the 15 numbers of `rfedge.messages`, in its order, or empty when the robot does not report them.
        rotation: the tool's orientation as three numbers, where it is not in `state`: without either, actions that rotate
            are refused. By `rotation_form` "euler" (fixed-axis xyz, rad) or "axis-angle" (axis times rad).
        pose: translation x y z (world frame) and rotation vector x y z (axis times angle, world frame) of the tool per
            control step.
        metres_per_unit, radians_per_unit: what 1.0 means to the robot.
        max_age_s: a camera that shows the same picture for longer is refused: two pictures of a real camera differ; None
            for simulators, whose pictures may be equal.

    Raises:
        ConfigError: not 6 names of the pose, neither 0 nor 15 of the state, neither 0 nor 3 of the rotation, or an
            unknown form or geometry.
    """

    static: str = "front"
    gripper: str = "wrist"
    state: tuple[str, ...] = ()
    rotation: tuple[str, ...] = ()
    rotation_form: str = "euler"
    pose: tuple[str, ...] = ("delta_x", "delta_y", "delta_z", "delta_rx", "delta_ry", "delta_rz")
    gripper_command: str = "gripper"
    metres_per_unit: float = 1.0
    radians_per_unit: float = 1.0
    gripper_closed: float = 0.0
    gripper_open: float = 1.0
    resize: str = DEFAULT_RESIZE
    max_age_s: float | None = 0.5

    def __post_init__(self) -> None:
        check_resize(self.resize)
        lists = (
            ("pose", self.pose, (POSE_SIZE,)),
            ("state", self.state, (0, STATE_SIZE)),
            ("rotation", self.rotation, (0, 3)),
        )
        for name, keys, sizes in lists:
            if len(keys) not in sizes:
                expected = " or ".join(str(size) for size in sizes)
                remedy = "See rfedge.messages."
                raise ConfigError(f"LeRobotKeys.{name}", got=f"{len(keys)} names", expected=expected, remedy=remedy)
        one_of(ROTATION_FORMS, self.rotation_form, "LeRobotKeys.rotation_form")


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
    """Return the frame in a dictionary of `get_observation`; pictures are brought to size as `keys.resize` says.

    Raises:
        ContractError: a key is missing, or a picture is not uint8 RGB.
    """
    missing = [key for key in (keys.static, keys.gripper, *keys.state, *keys.rotation) if key not in fields]
    if missing:
        remedy = "Name this robot's cameras and sensors in LeRobotKeys."
        raise ContractError("LeRobot observation", got=f"keys {sorted(fields)}", expected=f"also {missing}", remedy=remedy)
    return Observation(
        static=fit_camera(keys.static, np.asarray(fields[keys.static]), STATIC_IMAGE_SHAPE, keys.resize),
        gripper=fit_camera(keys.gripper, np.asarray(fields[keys.gripper]), GRIPPER_IMAGE_SHAPE, keys.resize),
        state=np.array([float(fields[key]) for key in keys.state]) if keys.state else None,
    )


def action_to_lerobot(action: Float32, keys: LeRobotKeys, euler_rad: FloatArray | None = None) -> dict[str, float]:
    """Return the dictionary for `send_action` of an action (7,); one without a gripper command has no key for it.

    `euler_rad` (3,) are measured fixed-axis xyz angles of the tool. ContractError: the action rotates and there are none.
    """
    translation_m, rotation_rad = tool_step(action, euler_rad)
    pose = (*(translation_m / keys.metres_per_unit).tolist(), *(rotation_rad / keys.radians_per_unit).tolist())
    command = dict(zip(keys.pose, pose, strict=True))
    if action[POSE_SIZE] == GRIPPER_KEEP:
        return command
    return command | {keys.gripper_command: keys.gripper_open if action[POSE_SIZE] > 0 else keys.gripper_closed}


class LeRobotRobot:
    """Drives a connected LeRobot robot; ConfigError where it does not take one of the commands."""

    def __init__(self, robot: LeRobotLike, keys: LeRobotKeys | None = None, *, clock: Clock | None = None) -> None:
        self._robot = robot
        self._keys = keys or LeRobotKeys()
        missing = [key for key in (*self._keys.pose, self._keys.gripper_command) if key not in robot.action_features]
        if missing:
            raise ConfigError(
                "LeRobot action",
                got=f"a robot that takes {sorted(robot.action_features)}",
                expected=f"also {missing}",
                remedy="Name its commands in LeRobotKeys; a robot driven by joints needs a wrapper that takes deltas.",
            )
        self._last: Float32 | None = None
        self._euler_rad: Float64 | None = None
        self._stillness = Stillness(clock or MonotonicClock())

    @property
    def conventions(self) -> Conventions:
        """The camera geometry; deltas have no rate of their own."""
        return Conventions(resize=self._keys.resize)

    def observe(self) -> Observation:
        """Read cameras and sensors.

        Raises:
            ContractError: see `observation_from_lerobot`.
            BackendUnavailableError: a camera shows the same picture for longer than `max_age_s`.
        """
        keys = self._keys
        fields = self._robot.get_observation()
        observation = observation_from_lerobot(fields, keys)
        if keys.max_age_s is not None:
            for name, image in ((keys.static, observation.static), (keys.gripper, observation.gripper)):
                still_s = self._stillness.see(name, image)
                if still_s > keys.max_age_s:
                    raise BackendUnavailableError(
                        f"camera {name!r}",
                        got=f"the same picture for {still_s:.1f} s",
                        expected=f"a new one in {keys.max_age_s:g} s",
                        remedy="It is frozen: check driver and cable (LeRobotKeys.max_age_s; None for a simulator).",
                    )
        self._euler_rad = _orientation(fields, observation, keys)
        return observation

    def apply(self, action: Float32) -> None:
        """Send one control step; ContractError where it rotates and the robot does not report its orientation."""
        self._robot.send_action(action_to_lerobot(action, self._keys, self._euler_rad))
        self._last = action
        if self._euler_rad is not None:  # until the next frame says where it came to
            self._euler_rad = self._euler_rad + ROTATION_SCALE_RAD * action[3:POSE_SIZE].astype(np.float64)

    def stop(self) -> None:
        """Send zero motion with the gripper as it was last sent; before the first action nothing moves."""
        if self._last is not None:
            hold = np.zeros_like(self._last)
            hold[POSE_SIZE] = self._last[POSE_SIZE]
            self._robot.send_action(action_to_lerobot(hold, self._keys))


def _orientation(fields: Mapping[str, Any], observation: Observation, keys: LeRobotKeys) -> Float64 | None:
    if keys.rotation:
        numbers = np.array([float(fields[key]) for key in keys.rotation])
        return vectors_to_euler(numbers) if keys.rotation_form == "axis-angle" else numbers
    return None if observation.state is None else np.array(observation.state[3:POSE_SIZE], dtype=np.float64)


def connect_lerobot(config: Any, keys: LeRobotKeys | None = None) -> LeRobotRobot:
    """Make and connect the robot of a `lerobot.robots.RobotConfig`.

    Raises BackendUnavailableError without lerobot, and ConfigError as `LeRobotRobot`.
    """
    robots = import_optional("lerobot.robots", needed_for="LeRobot robot", remedy="pip install lerobot.")
    robot = robots.make_robot_from_config(config)
    robot.connect()
    return LeRobotRobot(cast(LeRobotLike, robot), keys)
