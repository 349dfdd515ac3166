"""Follows a list of waypoints with the public relative action, and starts over when the goal was missed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from rfedge.envs.interface import Float64Array
from rfedge.envs.playtable.layout import BASE_POSITION_M
from rfedge.envs.rotations import euler_to_matrix, matrix_to_euler, rotation_about, wrap_angle
from rfedge.messages import ACTION_SIZE, GRIPPER_CLOSE, GRIPPER_OPEN, POSITION_SCALE_M, ROTATION_SCALE_RAD

__all__ = ["Anchor", "AnchorFinder", "Expert", "Script", "Variation", "Waypoint", "WaypointExpert"]

# Share by which the assumed target pose is drawn to the measured tcp at each step in which the arm stands still. It
# forgets what the expert cannot know (where an earlier task left the target) and lets a blocked arm press on. While the
# arm moves its lag is no error, and forgetting it would add up to an overshoot.
_FORGET: Final = 0.08
_STILL: Final = (0.0015, 0.006)  # metres and radians per control step
_SCALE: Final = np.array([POSITION_SCALE_M] * 3 + [ROTATION_SCALE_RAD] * 3)
# The commands never run further ahead of the tcp than this: near full stretch the joints cannot keep up, and a target
# far ahead would pull the arm off its path.
_MAX_LEAD_M: Final = 0.045
_ANCHOR_MOVED_M: Final = 0.02
_YAW_TOLERANCE_RAD: Final = 0.06
_UPRIGHT_RAD: Final = math.pi  # roll of a gripper that points straight down
_POINTING_YAW_RAD: Final = math.pi / 2  # fingers open along the world x axis


class Expert(Protocol):
    """Anything that maps states to actions."""

    def act(self, robot_obs: Float64Array, scene_obs: Float64Array) -> Float64Array:
        """Return the relative action (7,) for robot_obs (15,) and scene_obs (24,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """A place that waypoints refer to.

    Attributes:
        position_m: (3,) in world coordinates.
        yaw_rad: the gripper yaw that suits it; any multiple of `symmetry_rad` away is as good.
        symmetry_rad: see `yaw_rad`.
    """

    position_m: Float64Array
    yaw_rad: float = _POINTING_YAW_RAD
    symmetry_rad: float = math.pi


AnchorFinder = Callable[[Float64Array], Anchor]  # scene_obs (24,) -> where the anchor is now
Goal = Callable[[Float64Array, Float64Array], bool]  # scene_obs at the start, scene_obs now -> done


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Where the tcp goes next.

    Attributes:
        offset_m: from the anchor as it stood when this waypoint began.
        closed: whether the gripper is closed on the way.
        tolerance_m: how near counts as reached; a via point has a large one.
        dwell_steps: control steps to stay after reaching it.
        jitter: how much of the episode's approach jitter applies, 0 to 1.
        towards_base_m: horizontal shift towards the robot's base; high above the far edge the arm cannot reach.
        tilt_rad: how far the fingers point outwards, away from the base; 0 is straight down.
        turn_rad: added to the anchor's yaw as it stood when this waypoint began; None keeps the last orientation.
        watched: whether the attempt starts over when the anchor moves away during this waypoint.
    """

    offset_m: tuple[float, float, float]
    closed: bool
    tolerance_m: float = 0.01
    dwell_steps: int = 0
    jitter: float = 0.0
    towards_base_m: float = 0.0
    tilt_rad: float = 0.0
    turn_rad: float | None = 0.0
    watched: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """One way to do a task.

    Attributes:
        anchor: finds the anchor in a scene state.
        waypoints: visited in order.
        goal: tells from the first and the present scene state whether the task is done.
        grasp_jitter_m: half-width of the random offset added to every waypoint, per axis.
        approach_jitter_m: half-width of the random offset of via points, scaled by `Waypoint.jitter`.
    """

    anchor: AnchorFinder
    waypoints: tuple[Waypoint, ...]
    goal: Goal
    grasp_jitter_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    approach_jitter_m: tuple[float, float, float] = (0.02, 0.02, 0.02)


@dataclass(frozen=True, slots=True)
class Variation:
    """Bounds of what differs between two episodes of one script.

    Attributes:
        speed: range of the largest pose component of an action.
        patience_steps: control steps after which a waypoint is given up.
    """

    speed: tuple[float, float] = (0.75, 1.0)
    patience_steps: int = 45


class WaypointExpert:
    """Runs a script in closed loop.

    The arm lags behind what it was told, and actions are increments of a target that no observation shows. So the
    expert adds up its own actions, and sends only what is missing between their sum and the waypoint; steering by the
    measured tcp instead would overshoot every waypoint.
    """

    def __init__(self, script: Script, rng: np.random.Generator, variation: Variation | None = None) -> None:
        """Draw this episode's speed and offsets from `rng`."""
        self._script = script
        self._rng = rng
        self._variation = variation or Variation()
        self._speed = float(rng.uniform(*self._variation.speed))
        self._commanded: Float64Array = np.zeros(6)  # pose that all earlier actions added up to
        self._last_tcp: Float64Array = np.zeros(6)
        self._start_scene: Float64Array | None = None
        self._anchor_m: Float64Array = np.zeros(3)
        self._target_m: Float64Array = np.zeros(3)
        self._goal_euler: Float64Array = np.zeros(3)
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        self._index = -1
        self._steps = 0
        self._reached_steps = 0
        grasp, approach = np.array(self._script.grasp_jitter_m), np.array(self._script.approach_jitter_m)
        self._grasp_m = self._rng.uniform(-1.0, 1.0, size=3) * grasp
        self._approach_m = self._rng.uniform(-1.0, 1.0, size=3) * approach

    def act(self, robot_obs: Float64Array, scene_obs: Float64Array) -> Float64Array:
        """Return the next action (7,): pose within [-1, 1], gripper -1 or 1."""
        if self._start_scene is None:
            self._start_scene = scene_obs.copy()
            self._commanded = robot_obs[:6].copy()
        else:
            self._forget(robot_obs[:6])
        self._last_tcp = robot_obs[:6].copy()
        if self._index >= 0 and self._anchor_has_moved(scene_obs):
            self._begin_attempt()
        if self._index < 0 or self._waypoint_is_over(robot_obs):
            self._go_on(scene_obs, self._start_scene)
        self._steps += 1
        turn_rad = wrap_angle(self._goal_euler - self._commanded[3:])
        action = np.empty(ACTION_SIZE)
        lead_m = self._target_m - robot_obs[:3]
        next_m = robot_obs[:3] + lead_m * min(1.0, _MAX_LEAD_M / max(float(np.linalg.norm(lead_m)), 1e-9))
        action[:3] = _limit((next_m - self._commanded[:3]) / POSITION_SCALE_M, self._speed)
        action[3:6] = _limit(turn_rad / ROTATION_SCALE_RAD, 1.0)
        action[6] = GRIPPER_CLOSE if self._script.waypoints[self._index].closed else GRIPPER_OPEN
        self._commanded = self._commanded + _SCALE * action[:6]
        return action

    def _forget(self, tcp: Float64Array) -> None:
        ahead, moved = self._commanded - tcp, tcp - self._last_tcp
        ahead[3:], moved[3:] = wrap_angle(ahead[3:]), wrap_angle(moved[3:])
        for part, still in zip((slice(0, 3), slice(3, 6)), _STILL, strict=True):
            if float(np.abs(moved[part]).max()) < still:
                ahead[part] *= 1.0 - _FORGET
        self._commanded = tcp + ahead

    def _anchor_has_moved(self, scene_obs: Float64Array) -> bool:
        if not self._script.waypoints[self._index].watched:
            return False
        away_m = self._script.anchor(scene_obs).position_m - self._anchor_m
        return float(np.linalg.norm(away_m)) > _ANCHOR_MOVED_M

    def _waypoint_is_over(self, robot_obs: Float64Array) -> bool:
        if self._steps > self._variation.patience_steps:
            return True
        waypoint = self._script.waypoints[self._index]
        # A via point counts as reached as soon as the commands reach it; a precise one waits for the arm.
        expected_m = self._commanded[:3] if waypoint.tolerance_m > POSITION_SCALE_M else robot_obs[:3]
        near = float(np.linalg.norm(self._target_m - expected_m)) < waypoint.tolerance_m
        aligned = abs(float(wrap_angle(self._goal_euler[2] - robot_obs[5]))) < _YAW_TOLERANCE_RAD
        if near and aligned:
            self._reached_steps += 1
        return self._reached_steps > waypoint.dwell_steps

    def _go_on(self, scene_obs: Float64Array, start_scene: Float64Array) -> None:
        """Go to the next waypoint; after the last one hold still when the goal is met, or start over."""
        if self._index + 1 == len(self._script.waypoints):
            if self._script.goal(start_scene, scene_obs):
                return
            self._begin_attempt()
        self._index += 1
        self._steps = 0
        self._reached_steps = 0
        waypoint = self._script.waypoints[self._index]
        anchor = self._script.anchor(scene_obs)
        self._anchor_m = anchor.position_m
        offset_m = np.array(waypoint.offset_m) + self._grasp_m + waypoint.jitter * self._approach_m
        outwards = anchor.position_m - np.array(BASE_POSITION_M)
        outwards[2] = 0.0
        outwards /= np.linalg.norm(outwards)
        self._target_m = anchor.position_m + offset_m - waypoint.towards_base_m * outwards
        if waypoint.turn_rad is None:
            return
        # Of the equally good yaws the one nearest to the neutral pose: the wrist never winds up to its limit.
        away = _POINTING_YAW_RAD - anchor.yaw_rad
        yaw_rad = anchor.yaw_rad + anchor.symmetry_rad * round(away / anchor.symmetry_rad) + waypoint.turn_rad
        upright = euler_to_matrix(np.array([_UPRIGHT_RAD, 0.0, yaw_rad]))
        tilt = rotation_about(np.cross(outwards, (0.0, 0.0, 1.0)), waypoint.tilt_rad)
        self._goal_euler = matrix_to_euler(tilt @ upright)


def _limit(move: Float64Array, largest: float) -> Float64Array:
    """Shorten `move` (3,) so that no component exceeds `largest`, keeping its direction."""
    return np.asarray(move * min(1.0, largest / max(float(np.abs(move).max()), 1e-9)), dtype=np.float64)
