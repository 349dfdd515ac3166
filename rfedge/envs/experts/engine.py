"""Follows the waypoints of a script with the public relative action, and plans anew when something went wrong.

Before a script it lets go of what is not wanted, and leaves the place where the last task ended.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from rfedge.data.frames import ACTION_SCALE
from rfedge.envs.experts.script import POINTING_YAW_RAD, Anchor, Script, Situation, Waypoint, fixed
from rfedge.envs.interface import Float64Array
from rfedge.envs.playtable.layout import BASE_POSITION_M, TableLayout
from rfedge.messages import ACTION_SIZE, GRIPPER_CLOSE, GRIPPER_OPEN, POSITION_SCALE_M, ROTATION_SCALE_RAD
from rfedge.robot.rotations import euler_to_matrix, matrix_to_euler, rotation_about, wrap_angle

# The arm covers this share of the way to its target at each control step, so what is left follows from how far it moved.
_RESPONSE: Final = 0.49
# Share by which the assumed target is moved to the one that the last movement tells: all of it at first, when nothing is
# known about where an earlier task left the target, little later on. A blocked arm, which does not move, presses on.
_TRUST: Final = 0.08
# The commands never run further ahead of the tcp than this: near full stretch the joints cannot keep up, and a target
# far ahead would pull the arm off its path.
_MAX_LEAD_M: Final = 0.045
_ANCHOR_MOVED_M: Final = 0.02
_SPEED: Final = (0.75, 1.0)  # range of the largest pose component of an action, one speed per episode
_PATIENCE_STEPS: Final = 45  # after which a waypoint is given up
_LOST_M: Final = 0.05  # a carried block further from the tcp than this has been lost
_YAW_TOLERANCE_RAD: Final = 0.06
_UPRIGHT_RAD: Final = math.pi  # roll of a gripper that points straight down
# An attempt is given up when somebody else moved the arm this far from the path between two waypoints, or when a waypoint
# is still this far away at the end of its time.
_STRAYED_M: Final = 0.09
_WRIST: Final = 13  # place of the last joint in robot_obs; it turns against the yaw
_NEUTRAL_WRIST_RAD: Final = 0.55
_MISSED_M: Final = 0.06
_MISSED_GRIP_M: Final = 0.025
# An arm this near the way between two waypoints is on it.
_JOINED_M: Final = 0.014
_JOINED_RAD: Final = 0.3


class Expert:
    """Runs a script in closed loop.

    The arm lags behind its commands, and actions are increments of a target that no observation shows. So the
    expert adds up the actions that were sent, and asks only for what is missing between their sum and the waypoint;
    steering by the measured tcp instead would overshoot every waypoint.
    """

    def __init__(self, script: Script, layout: TableLayout, rng: np.random.Generator) -> None:
        self._script = script
        self._layout = layout
        self._rng = rng
        self._speed = float(rng.uniform(*_SPEED))
        self._before: Float64Array = np.zeros(6)  # what all earlier actions but the last added up to
        self._commanded: Float64Array = np.zeros(6)  # the same with the last one
        self._last_tcp: Float64Array = np.zeros(6)
        self._start_scene: Float64Array | None = None
        self._anchor_m = self._from_m = self._target_m = self._goal_euler = np.zeros(3)
        self._grasp_m = self._approach_m = np.zeros(3)
        self._plan: tuple[Waypoint, ...] = ()
        self._index = -1
        self._steps = self._reached_steps = self._attempts = self._corrections = 0

    def begin(self, scene_obs: Float64Array) -> None:
        """Take note of how the scene (24,) was when the task began, where that was before the first `act`."""
        self._start_scene = scene_obs.copy()

    def act(self, robot_obs: Float64Array, scene_obs: Float64Array) -> Float64Array:
        """Return the next action (7,) for robot_obs (15,) and scene_obs (24,): pose within [-1, 1], gripper -1 or 1."""
        if self._plan:
            self._correct(robot_obs[:6])
        else:
            self._commanded = robot_obs[:6].copy()
        if self._start_scene is None:
            self._start_scene = scene_obs.copy()
        self._last_tcp = robot_obs[:6].copy()
        situation = Situation(self._layout, robot_obs, scene_obs, self._start_scene, self._attempts)
        if not self._plan or self._has_gone_wrong(situation):
            self._begin_attempt(situation)
        elif self._waypoint_is_over(robot_obs):
            self._go_on(situation)
        self._steps += 1
        turn_rad = wrap_angle(self._goal_euler - self._commanded[3:])
        wrist_rad = _NEUTRAL_WRIST_RAD - float(robot_obs[_WRIST])
        turn_rad[2] = _near(self._goal_euler[2], 0.0) - _near(self._commanded[5], wrist_rad)
        action = np.empty(ACTION_SIZE)
        lead_m = self._target_m - robot_obs[:3]
        next_m = robot_obs[:3] + lead_m * min(1.0, _MAX_LEAD_M / max(float(np.linalg.norm(lead_m)), 1e-9))
        action[:3] = _limit((next_m - self._commanded[:3]) / POSITION_SCALE_M, self._speed * self._plan[self._index].speed)
        action[3:6] = _limit(turn_rad / ROTATION_SCALE_RAD, 1.0)
        action[6] = GRIPPER_CLOSE if self._plan[self._index].closed else GRIPPER_OPEN
        self._before = self._commanded
        self.observe_executed(action)
        return action

    def observe_executed(self, action: Float64Array) -> None:
        """Take note that `action` (7,) was sent instead of what `act` returned last."""
        self._commanded = self._before + ACTION_SCALE * action[:6]

    def _begin_attempt(self, situation: Situation) -> None:
        grasp, approach = np.array(self._script.grasp_jitter_m), np.array(self._script.approach_jitter_m)
        self._grasp_m = self._rng.uniform(-1.0, 1.0, size=3) * grasp
        self._approach_m = self._rng.uniform(-1.0, 1.0, size=3) * approach
        self._attempts += 1
        self._goal_euler = situation.robot_obs[3:6].copy()
        plan = self._script.plan(situation)
        first_m = plan[0].anchor(situation.scene_obs).position_m + np.array(plan[0].offset_m)
        # Whoever drove before may have done a part of the task: the expert goes on instead of beginning again.
        if self._attempts == 1 and (index := self._joined(plan, situation)) is not None:
            self._plan = plan[index:]
        elif self._script.goes_on(situation):
            self._plan = plan
        else:
            self._plan = (*clear_the_way(situation, self._script, first_m), *plan)
        self._go_to(0, situation)

    def _joined(self, plan: tuple[Waypoint, ...], situation: Situation) -> int | None:
        """Return the waypoint that the arm is on its way to from the one before, with the gripper as it should be."""
        if situation.held_block() is not None and not self._script.keeps(situation):
            return None
        goal = situation.robot_obs[3:6]
        targets = []
        for waypoint in plan:
            _, target_m, goal = self._pose_at(waypoint, situation, goal)
            targets.append((target_m, goal))
        for index in range(len(plan) - 1, 0, -1):
            (from_m, _), (to_m, goal) = targets[index - 1], targets[index]
            near_m = max(_JOINED_M, plan[index].tolerance_m)
            off_rad = abs(float(wrap_angle(goal[2] - situation.robot_obs[5])))
            if (
                plan[index].closed == situation.gripper_closed
                and off_rad < _JOINED_RAD
                and _distance_m(situation.tcp_m, from_m, to_m) < near_m
            ):
                return index
        return None

    def _go_on(self, situation: Situation) -> None:
        """Go to the next waypoint; after the last one wait when the goal is met, or start over."""
        if self._index + 1 == len(self._plan):
            # Asked on after the goal was met, the oracle must see it differently: do it once more.
            done = self._script.goal(situation.start_scene, situation.scene_obs)
            if not done or self._steps > _PATIENCE_STEPS:
                self._begin_attempt(situation)
            return
        waypoint = self._plan[self._index]
        allowed_m = max(_MISSED_GRIP_M if waypoint.watched else _MISSED_M, waypoint.tolerance_m)
        away_m = float(np.linalg.norm(self._target_m - situation.tcp_m))
        if self._steps > _PATIENCE_STEPS and away_m > allowed_m:  # its time ran out far away from it
            self._begin_attempt(situation)
        else:
            self._go_to(self._index + 1, situation)

    def _correct(self, tcp: Float64Array) -> None:
        """Move the assumed target pose towards what the arm's last movement says about it."""
        ahead, moved = self._commanded - tcp, tcp - self._last_tcp
        ahead[3:], moved[3:] = wrap_angle(ahead[3:]), wrap_angle(moved[3:])
        self._corrections += 1
        trust = max(_TRUST, 1.0 / self._corrections)
        self._commanded = tcp + ahead + trust * ((1.0 / _RESPONSE - 1.0) * moved - ahead)

    def _has_gone_wrong(self, situation: Situation) -> bool:
        """Return whether the anchor moved away, the carried block was lost, or the arm is not where the plan has it."""
        waypoint = self._plan[self._index]
        if waypoint.watched:
            away_m = waypoint.anchor(situation.scene_obs).position_m - self._anchor_m
            if float(np.linalg.norm(away_m)) > _ANCHOR_MOVED_M:
                return True
        if waypoint.carried is not None:
            block_m = situation.block_pose(waypoint.carried)[:3]
            if float(np.linalg.norm(block_m - situation.tcp_m)) > _LOST_M:
                return True
        return _distance_m(situation.tcp_m, self._from_m, self._target_m) > _STRAYED_M

    def _waypoint_is_over(self, robot_obs: Float64Array) -> bool:
        if self._steps > _PATIENCE_STEPS:
            return True
        waypoint = self._plan[self._index]
        # A via point counts as reached as soon as the commands reach it; a precise one waits for the arm.
        expected_m = self._commanded[:3] if waypoint.tolerance_m > POSITION_SCALE_M else robot_obs[:3]
        near = float(np.linalg.norm(self._target_m - expected_m)) < waypoint.tolerance_m
        aligned = abs(float(wrap_angle(self._goal_euler[2] - robot_obs[5]))) < _YAW_TOLERANCE_RAD
        if near and aligned:
            self._reached_steps += 1
        return self._reached_steps > waypoint.dwell_steps

    def _go_to(self, index: int, situation: Situation) -> None:
        self._index = index
        self._steps = 0
        self._reached_steps = 0
        waypoint = self._plan[index]
        self._from_m = situation.tcp_m.copy()
        self._anchor_m, self._target_m, self._goal_euler = self._pose_at(waypoint, situation, self._goal_euler)

    def _pose_at(
        self, waypoint: Waypoint, situation: Situation, euler: Float64Array
    ) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return the anchor (3,), the tcp's target (3,) and its euler angles (3,), which without a turn stay `euler`."""
        anchor = waypoint.anchor(situation.scene_obs)
        outwards = anchor.position_m - np.array(BASE_POSITION_M)
        outwards[2] = 0.0
        outwards /= np.linalg.norm(outwards)
        if waypoint.turn_rad is not None:
            euler = _orientation(waypoint, anchor, outwards, situation)
        offset_m = np.array(waypoint.offset_m) + self._grasp_m + waypoint.jitter * self._approach_m
        target_m = anchor.position_m + offset_m - waypoint.towards_base_m * outwards
        if waypoint.carried is not None:
            grip_m = situation.tcp_rotation.T @ (situation.block_pose(waypoint.carried)[:3] - situation.tcp_m)
            target_m = target_m - euler_to_matrix(euler) @ grip_m
        return anchor.position_m, target_m, euler


def _orientation(waypoint: Waypoint, anchor: Anchor, outwards: Float64Array, situation: Situation) -> Float64Array:
    """Return the gripper's euler angles (3,) at a waypoint."""
    # Of the equally good yaws one near the neutral pose: the wrist never winds up to its limit.
    away = POINTING_YAW_RAD - anchor.yaw_rad
    yaw_rad = anchor.yaw_rad + anchor.symmetry_rad * round(away / anchor.symmetry_rad) + (waypoint.turn_rad or 0.0)
    upright = euler_to_matrix(np.array([_UPRIGHT_RAD, 0.0, yaw_rad]))
    tilt = rotation_about(np.cross(outwards, (0.0, 0.0, 1.0)), waypoint.tilt_rad)
    opening = upright[:, 1]
    if waypoint.level and waypoint.carried is not None:
        return matrix_to_euler(rotation_about(opening, _levelling_rad(situation, waypoint.carried)) @ upright)
    # Whichever way round the fingers are, leaning tips them towards the rear of the table.
    side = 1.0 if opening[0] > 0 else -1.0
    return matrix_to_euler(rotation_about(side * opening, waypoint.lean_rad) @ tilt @ upright)


def _levelling_rad(situation: Situation, block: str) -> float:
    """Return by how much an upright gripper must turn about its opening for the block in it to stand upright."""
    axes = situation.tcp_rotation.T @ euler_to_matrix(situation.block_pose(block)[3:])
    # Of the block's six directions the one that points up, which in the gripper's frame is -z.
    upwards = max((sign * axes[:, index] for index in range(3) for sign in (-1.0, 1.0)), key=lambda axis: -float(axis[2]))
    return math.atan2(float(upwards[0]), -float(upwards[2]))


def _distance_m(point_m: Float64Array, from_m: Float64Array, to_m: Float64Array) -> float:
    """Return how far a point (3,) is from a straight way."""
    way = to_m - from_m
    along = np.clip(float((point_m - from_m) @ way) / max(float(way @ way), 1e-9), 0.0, 1.0)
    return float(np.linalg.norm(from_m + along * way - point_m))


def _near(yaw_rad: float, turned_rad: float) -> float:
    """Return how far a gripper at `yaw_rad` is turned from the neutral one, taking the full turn nearest to `turned_rad`."""
    # The shortest way between two yaws may lead over a limit of the wrist; over the neutral yaw it never does.
    return turned_rad + float(wrap_angle(yaw_rad - POINTING_YAW_RAD - turned_rad))


def _limit(move: Float64Array, largest: float) -> Float64Array:
    """Shorten `move` (3,) so that no component exceeds `largest`, keeping its direction."""
    return np.asarray(move * min(1.0, largest / max(float(np.abs(move).max()), 1e-9)), dtype=np.float64)


# In front of the cabinet and this high nothing is in the way of an upright hand.
_TRAVEL_Z_M: Final = 0.58
_FREE_Z_M: Final = 0.535
_FREE_Y_M: Final = -0.06
_FACE_RETREAT_Y_M: Final = -0.12
_FACE_Z_M: Final = 0.50  # lower and still on the table the hand stands in front of the face, and goes straight up
_CABINET_Y_M: Final = 0.03
_RISE_M: Final = 0.05
_HIGH_Z_M: Final = 0.72  # above everything
_BESIDE_M: Final = 0.06  # to a target this near the arm does not go all the way up
_TOUCHING_M: Final = 0.07  # horizontally from the tcp to the centre of a block that closed fingers may touch
_LEVEL_M: Final = 0.04
_BACK_M: Final = 0.04
_EMPTY_WIDTH_M: Final = 0.012  # closed fingers with nothing between them
_OPEN_STEPS: Final = 3


def clear_the_way(situation: Situation, script: Script, first_m: Float64Array) -> tuple[Waypoint, ...]:
    """Return waypoints that end in the open, from where the script's first target `first_m` (3,) is a straight move."""
    keeps = script.keeps(situation)
    held = situation.held_block()
    if held is not None and not keeps and situation.place_of(held) == "above":
        return _put_down(situation, held)
    steps: list[Waypoint] = []
    here = fixed(situation.tcp_m.copy())
    closed = situation.gripper_closed
    if closed and not keeps and situation.robot_obs[6] > _EMPTY_WIDTH_M:
        steps.append(Waypoint(here, (0.0, 0.0, 0.0), closed=False, tolerance_m=0.05, dwell_steps=_OPEN_STEPS, turn_rad=None))
        closed = False
    x_m, y_m, z_m = situation.tcp_m
    block_m = situation.block_pose(situation.nearest_block())[:3]
    apart_m = situation.tcp_m[:2] - block_m[:2]
    if not keeps and closed and float(np.linalg.norm(apart_m)) < _TOUCHING_M and abs(block_m[2] - z_m) < _LEVEL_M:
        # Closed fingers beside a block have pushed it. They would drag it along, or up, unless they first step back.
        back_m = situation.tcp_m.copy()
        back_m[:2] += _BACK_M * apart_m / max(float(np.linalg.norm(apart_m)), 1e-6)
        steps.append(Waypoint(fixed(back_m), (0.0, 0.0, 0.0), closed=True, tolerance_m=0.015, turn_rad=None))
        x_m, y_m, z_m = back_m
    tcp_m = situation.tcp_m
    is_free = (tcp_m[2] > _FREE_Z_M and tcp_m[1] < _FREE_Y_M) or tcp_m[2] > _HIGH_Z_M
    if not is_free:
        beside = float(np.linalg.norm(first_m[:2] - situation.tcp_m[:2])) < _BESIDE_M
        if y_m > _CABINET_Y_M or (y_m > _FREE_Y_M and z_m > _FACE_Z_M):
            away_m = np.array([x_m, _FACE_RETREAT_Y_M, max(z_m + _RISE_M, _TRAVEL_Z_M)])
        else:
            away_m = np.array([x_m, y_m, min(_TRAVEL_Z_M, max(first_m[2], z_m + _RISE_M)) if beside else _TRAVEL_Z_M])
        steps.append(Waypoint(fixed(away_m), (0.0, 0.0, 0.0), closed=closed, tolerance_m=0.02, turn_rad=None))
    return tuple(steps)


def _put_down(situation: Situation, held: str) -> tuple[Waypoint, ...]:
    spot = fixed(situation.free_table_spot(held))
    return (
        Waypoint(spot, (0.0, 0.0, 0.10), closed=True, tolerance_m=0.03, carried=held),
        Waypoint(spot, (0.0, 0.0, 0.004), closed=True, tolerance_m=0.01, carried=held),
        Waypoint(spot, (0.0, 0.0, 0.0), closed=False, tolerance_m=0.06, dwell_steps=_OPEN_STEPS, turn_rad=None),
        Waypoint(spot, (0.0, 0.0, 0.12), closed=False, tolerance_m=0.03, turn_rad=None),
    )
