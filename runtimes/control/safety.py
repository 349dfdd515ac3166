"""Between the policy and the robot: an action is checked and clamped before it is sent, and every change is reported.

The units are CALVIN's, see `rfedge.messages`: one unit of an action is 0.02 m or 0.05 rad. Nothing here asks the policy
to agree; what it wanted and what was sent are both recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Final, cast

import numpy as np

from rfedge.arrays import Float32, Float64
from rfedge.errors import ConfigError, ContractError
from rfedge.messages import (
    ACTION_SIZE,
    GRIPPER_CLOSE,
    GRIPPER_KEEP,
    GRIPPER_OPEN,
    POSE_SIZE,
    POSITION_SCALE_M,
    ROTATION_SCALE_RAD,
    FloatArray,
    Observation,
    check_state,
)
from rfedge.records.plan import Option
from rfedge.robot.rotations import rotation_vectors

__all__ = [
    "INTERVENTIONS",
    "CheckedAction",
    "SafetyGuard",
    "SafetyLimits",
    "Workspace",
    "guard_action",
    "hold_action",
    "not_finite",
]

# not-finite: NaN or Inf, zero motion was sent. clamped: a component beyond [-1, 1] or a gripper other than -1 or 1.
# translation-limit, rotation-limit: slowed down. workspace: the box cut the motion. gripper-limit: it changed too soon.
INTERVENTIONS: Final = ("not-finite", "clamped", "translation-limit", "rotation-limit", "workspace", "gripper-limit")
_POSITION_SIZE: Final = 3
_ROUNDING: Final = 1e-6  # what float32 may add to an angle that is at its limit


@dataclass(frozen=True, slots=True)
class Workspace:
    """A box in the world frame that the tool centre point is not driven out of; corners (x, y, z) in metres.

    Raises:
        ConfigError: a bound is not finite or a lower one is not below its upper one.
    """

    low_m: tuple[float, float, float]
    high_m: tuple[float, float, float]

    @classmethod
    def parse(cls, text: str) -> Workspace:
        """Read "XMIN,YMIN,ZMIN,XMAX,YMAX,ZMAX"; ConfigError for anything else."""
        try:
            x_min, y_min, z_min, x_max, y_max, z_max = (float(part) for part in text.split(","))
        except ValueError:
            remedy = "Give it as XMIN,YMIN,ZMIN,XMAX,YMAX,ZMAX."
            raise ConfigError("workspace", got=repr(text), expected="six numbers in metres", remedy=remedy) from None
        return cls((x_min, y_min, z_min), (x_max, y_max, z_max))

    def __post_init__(self) -> None:
        bounds = np.array([self.low_m, self.high_m])
        if bounds.shape != (2, _POSITION_SIZE) or not np.isfinite(bounds).all() or (bounds[0] >= bounds[1]).any():
            raise ConfigError(
                "workspace",
                got=f"{self.low_m} to {self.high_m}",
                expected="three finite lower bounds, each below its upper bound",
                remedy="Give it as XMIN,YMIN,ZMIN,XMAX,YMAX,ZMAX in metres.",
            )


@dataclass(frozen=True, slots=True)
class SafetyLimits:
    """Limits of the guard; every default is the action's own range.

    Attributes:
        max_step_m: a longer translation is shortened, its direction kept. Without it each axis may move 0.02 m, which is
            0.0346 m along the diagonal.
        max_step_rad: the same for the angle by which the tool turns; where the robot does not report its orientation, the
            limit holds for every orientation.
        workspace: None for no box. It needs a robot that reports its state.
        adds_up: whether commands add up on a target pose, as in CALVIN and PlayTable. Then the target stays inside the
            box too: a blocked arm whose target has left it would spring out of it.
        max_pose_jump_m: distance between two reported poses beyond what was sent between them; more is a sensor that cannot
            be trusted, and ends the run. It needs a robot that reports its state.

    Raises:
        ConfigError: a limit is not a positive number.
    """

    max_step_m: Annotated[
        float | None, Option("Longest translation of a control step in metres; longer ones are shortened.")
    ] = None
    max_step_rad: Annotated[float | None, Option("The same for the rotation in radians.")] = None
    workspace: Annotated[
        Workspace | None,
        Option("Box in the world frame the tool stays in: XMIN,YMIN,ZMIN,XMAX,YMAX,ZMAX in metres.", parse=Workspace.parse),
    ] = None
    adds_up: bool = True
    max_pose_jump_m: Annotated[
        float | None, Option("End the run when the reported tool jumps further than this beyond what was sent, in metres.")
    ] = None
    min_gripper_steps: Annotated[
        int | None, Option("Control steps that the gripper stays opened or closed before it may change again.")
    ] = None

    def __post_init__(self) -> None:
        for name in ("max_step_m", "max_step_rad", "max_pose_jump_m", "min_gripper_steps"):
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise ConfigError(name, got=limit, expected="a positive number", remedy="Leave it out for no limit.")


@dataclass(frozen=True, slots=True, eq=False)
class CheckedAction:
    """The action that may be sent."""

    action: Float32  # (7,), finite, within all limits, gripper -1 or 1, or 0 while unknown; float64 where it came so
    interventions: tuple[str, ...]  # which of `INTERVENTIONS` changed it


@dataclass(slots=True, eq=False)
class SafetyGuard:
    """Holds the actions of one robot to its limits; it remembers the gripper and, for the workspace, the pose."""

    limits: SafetyLimits = field(default_factory=SafetyLimits)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(INTERVENTIONS, 0))  # over its whole life
    gripper: float = GRIPPER_KEEP  # last sent, or reported before the first; 0 while nobody knows
    _has_commanded: bool = False  # the gripper
    _gripper_steps: int | None = None  # since it changed
    _measured_m: Float64 | None = None
    _target_m: Float64 | None = None
    _seen_m: Float64 | None = None  # last reported
    _path_m: float = 0.0  # sent since then
    _euler_rad: Float64 | None = None

    def reset(self) -> None:
        """Forget where the robot was; the counts go on, and so does the gripper, which may hold something."""
        self._has_commanded, self._gripper_steps = False, None
        self._measured_m = self._target_m = self._seen_m = self._euler_rad = None
        self._path_m = 0.0

    def see(self, observation: Observation) -> None:
        """Take the robot's pose and, before the first action, its gripper from a frame.

        Raises:
            ContractError: the state is no finite float array (15,) within its limit, the tool has jumped, or there is none
                and the limits need it.
        """
        state: object = observation.state
        if state is None:
            for name, limit in (("workspace", self.limits.workspace), ("max-pose-jump-m", self.limits.max_pose_jump_m)):
                if limit is not None:
                    got, remedy = "an observation without state", f"Run without --{name}, or let the robot report its state."
                    raise ContractError(name, got=got, expected="the tool centre point in observation.state", remedy=remedy)
            return
        check_state(state)
        assert isinstance(state, np.ndarray)
        position_m = np.array(state[:_POSITION_SIZE], dtype=np.float64)
        self._check_jump(position_m)
        if not self._has_commanded and state[-1] != GRIPPER_KEEP:
            self.gripper = GRIPPER_OPEN if state[-1] > 0 else GRIPPER_CLOSE
        self._measured_m, self._seen_m, self._path_m = position_m, position_m.copy(), 0.0
        self._euler_rad = np.array(state[_POSITION_SIZE:POSE_SIZE], dtype=np.float64)
        if self._target_m is None:
            self._target_m = position_m.copy()

    def hold(self) -> Float32:
        """Return zero motion with the gripper kept, float32 (7,); without a gripper command while nobody knows it."""
        return hold_action(self.gripper)

    def check(self, action: FloatArray) -> CheckedAction:
        """Return what may be sent for an action (7,); one with NaN or Inf becomes zero motion with the gripper kept.

        A gripper of 0 is no command, and keeps it too. ContractError: it has another shape.
        """
        _check_shape(action)
        if not np.isfinite(action).all():
            return self._count(CheckedAction(self.hold(), ("not-finite",)))
        interventions = []
        safe = _clamped(action)
        if action[POSE_SIZE] == GRIPPER_KEEP:
            safe[POSE_SIZE] = self.gripper
        if not np.array_equal(safe, action):
            interventions.append("clamped")
        limits = self.limits
        if limits.max_step_m is not None and _shorten(safe[:3], limits.max_step_m / POSITION_SCALE_M):
            interventions.append("translation-limit")
        if limits.max_step_rad is not None and _slow_turn(safe[3:POSE_SIZE], self._euler_rad, limits.max_step_rad):
            interventions.append("rotation-limit")
        if limits.workspace is not None and self._keep_inside(safe[:3], limits.workspace):
            interventions.append("workspace")
        if self._changes_too_soon(safe[POSE_SIZE]):
            safe[POSE_SIZE] = self.gripper
            interventions.append("gripper-limit")
        return self._count(CheckedAction(safe, tuple(interventions)))

    def sent(self, action: Float32) -> None:
        """Remember an action that the robot got: the gripper it holds and, until the next frame, where it went."""
        gripper = float(action[POSE_SIZE])
        if gripper != GRIPPER_KEEP:
            if gripper != self.gripper:
                self._gripper_steps = 0
            self.gripper, self._has_commanded = gripper, True
        if self._gripper_steps is not None:
            self._gripper_steps += 1
        if self._measured_m is not None and self._target_m is not None:
            step_m = POSITION_SCALE_M * action[:_POSITION_SIZE].astype(np.float64)
            self._measured_m += step_m
            self._target_m += step_m
            self._path_m += float(np.linalg.norm(step_m))
        if self._euler_rad is not None:
            self._euler_rad += ROTATION_SCALE_RAD * action[_POSITION_SIZE:POSE_SIZE].astype(np.float64)

    def _changes_too_soon(self, gripper: float) -> bool:
        limit, steps = self.limits.min_gripper_steps, self._gripper_steps
        return limit is not None and steps is not None and steps < limit and gripper != self.gripper

    def _check_jump(self, position_m: Float64) -> None:
        limit_m = self.limits.max_pose_jump_m
        if limit_m is None or self._seen_m is None:
            return
        moved_m = float(np.linalg.norm(position_m - self._seen_m))
        if moved_m > limit_m + self._path_m:
            raise ContractError(
                "observation.state",
                got=f"a tool that moved {moved_m:.3g} m between two frames",
                expected=f"up to {limit_m:g} m beyond the {self._path_m:.3g} m sent",
                remedy="Check the sensor, or raise --max-pose-jump-m.",
            )

    def _keep_inside(self, translation: Float32, box: Workspace) -> bool:
        """Shorten float32 (3,) in place, axis by axis, and say whether that was needed."""
        positions = [self._measured_m, self._target_m] if self.limits.adds_up else [self._measured_m]
        is_cut = False
        for axis in range(_POSITION_SIZE):  # in plain numbers: arrays of three cost four times as much
            wanted = value = float(translation[axis])
            for position_m in positions:
                if position_m is not None:
                    here_m = float(position_m[axis])
                    # An arm that is outside already may come back, at its own pace: it is not pulled.
                    low = min(0.0, (box.low_m[axis] - here_m) / POSITION_SCALE_M)
                    high = max(0.0, (box.high_m[axis] - here_m) / POSITION_SCALE_M)
                    value = min(max(value, low), high)
            if value != wanted:
                translation[axis] = value
                is_cut = True
        return is_cut

    def _count(self, checked: CheckedAction) -> CheckedAction:
        for name in checked.interventions:
            self.counts[name] += 1
        return checked


def hold_action(gripper: float) -> Float32:
    """Return zero motion, float32 (7,), with the gripper at -1 or 1, or 0 for no gripper command."""
    action = np.zeros(ACTION_SIZE, dtype=np.float32)
    action[POSE_SIZE] = gripper
    return action


def guard_action(action: FloatArray) -> Float32:
    """Return a safe copy of an action (7,): pose clamped to [-1, 1], gripper -1 or 1 by its sign.

    Raises:
        ContractError: it has another shape or is not finite.
    """
    _check_shape(action)
    if not np.isfinite(action).all():
        raise not_finite()
    return _clamped(action)


def not_finite() -> ContractError:
    """Return the error about an action with NaN or Inf, however it came up."""
    remedy = "The robot was not moved; check the policy."
    return ContractError("action", got="NaN or Inf", expected="finite values", remedy=remedy)


def _check_shape(action: FloatArray) -> None:
    if action.shape != (ACTION_SIZE,):
        remedy = "Return one control step."
        raise ContractError("action", got=f"shape {action.shape}", expected=f"({ACTION_SIZE},)", remedy=remedy)


def _clamped(action: FloatArray) -> Float32:
    safe = cast("Float32", np.clip(action, -1.0, 1.0))
    safe[POSE_SIZE] = GRIPPER_OPEN if action[POSE_SIZE] > 0 else GRIPPER_CLOSE
    return safe


def _shorten(vector: Float32, longest: float) -> bool:
    """Scale float32 (3,) in place to at most `longest` and say whether that was needed."""
    length = float(np.linalg.norm(vector))
    if length <= longest:
        return False
    vector *= longest / length
    return True


def _slow_turn(steps: Float32, euler_rad: Float64 | None, limit_rad: float) -> bool:
    """Scale steps of Euler angles, float32 (3,) in units, in place, until the tool turns by at most `limit_rad`."""
    angle_rad = _turned_rad(steps, euler_rad)
    allowed_rad = limit_rad * (1.0 + _ROUNDING)
    if angle_rad <= allowed_rad:
        return False
    wanted = steps.copy()
    share = 1.0
    while angle_rad > allowed_rad:  # nearly in proportion: once or twice
        share *= limit_rad / angle_rad
        steps[:] = share * wanted
        angle_rad = _turned_rad(steps, euler_rad)
    return True


def _turned_rad(steps: Float32, euler_rad: Float64 | None) -> float:
    """Return the angle of R(e + step) R(e)^T; its largest over all e where the orientation is not known."""
    steps_rad = ROTATION_SCALE_RAD * steps.astype(np.float64)
    if euler_rad is not None:
        return float(np.linalg.norm(rotation_vectors(euler_rad, steps_rad)))
    # Roll and yaw turn about one axis when the tool points along it; pitch is always square to yaw.
    return math.hypot(abs(steps_rad[0]) + abs(steps_rad[2]), steps_rad[1])
