"""Scripts for a block where it lies: lift, push, rotate, and push it into the drawer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np

from rfedge.envs.experts.furniture import door_waypoints, drawer_handle, drawer_waypoints
from rfedge.envs.experts.grip import choose_grip, is_around
from rfedge.envs.experts.script import DRAWER, SLIDE, Anchor, AnchorFinder, Script, Situation, Waypoint, fixed
from rfedge.envs.interface import BLOCKS, Float64Array
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import BASE_POSITION_M, TableLayout
from rfedge.envs.playtable.placement import block_slice
from rfedge.robot.rotations import wrap_angle

_HALF_BLOCK_M: Final = 0.5 * dimensions.BLOCK_WIDTH_M
_TURN_RAD: Final = math.radians(92.0)
LEAN_RAD: Final = 0.6  # in the cabinet, where an upright hand would meet door and walls
_DOOR_GAP_M: Final = 0.11  # from the door's edge to the centre of a block that can be gripped
_DOOR_AT_END_M: Final = 0.02
_RISE_M: Final = 0.06  # how far a lifted block goes up, a little more than any lift asks for
_FACE_Y_M: Final = -0.07  # further back on the table the cabinet's face is near
_FACE_LEAN_RAD: Final = 0.4
_REACH_M: Final = 0.77  # horizontal distance from the base at which an upright gripper still comes down to the table
_DRAWER_NARROW_M: Final = 0.05  # missing from the whole travel
# A block this far from the drawer's middle would fall beside it; it is first dragged to where it falls in.
_DRAWER_REACH_X_M: Final = 0.16
_DRAWER_AIM_X_M: Final = 0.12
_EDGE_Y_M: Final = -dimensions.TABLE_HALF_Y_M


def is_held(situation: Situation, block: str) -> bool:
    """Return whether the block is in the grip, by whoever drove before: going on is then better than starting over."""
    return situation.held_block() == block


def is_at(situation: Situation, block: str) -> bool:
    """Return whether the block is in the grip or the open gripper around it, so that no approach is needed."""
    return is_held(situation, block) or is_around(situation, block)


def grasp(
    situation: Situation, name: str, block: AnchorFinder, approach: tuple[Waypoint, ...], *, lean_rad: float = 0.0
) -> tuple[Waypoint, ...]:
    """Return what is left of the approach, the way down to the block and the closing of the fingers."""
    if is_held(situation, name):
        return ()
    return (
        *(() if is_around(situation, name) else approach),
        Waypoint(block, (0.0, 0.0, 0.006), closed=False, tolerance_m=0.008, lean_rad=lean_rad, watched=True),
        Waypoint(block, (0.0, 0.0, 0.006), closed=True, tolerance_m=0.02, lean_rad=lean_rad, dwell_steps=3),
    )


def _centre_of(layout: TableLayout, block: str) -> AnchorFinder:
    """Return where a block's centre is, whichever way the block is turned."""
    place = block_slice(layout, block).start
    return lambda scene: Anchor(scene[place : place + 3].copy())


def _approach_on_table(block: AnchorFinder, *, lean_rad: float = 0.0) -> tuple[Waypoint, ...]:
    above = Waypoint(block, (0.0, 0.0, 0.046), closed=False, tolerance_m=0.014, lean_rad=lean_rad, watched=True)
    high = replace(above, offset_m=(0.0, 0.0, 0.075), tolerance_m=0.03, jitter=1.0, towards_base_m=0.05)
    return high, above


def _lean_on_table(situation: Situation, name: str) -> float:
    """Return how far to lean over a block on the table: near the cabinet an upright hand meets the handle of its door."""
    return _FACE_LEAN_RAD if float(situation.block_pose(name)[1]) > _FACE_Y_M else 0.0


# --- lift ---------------------------------------------------------------------------------------------------------------
def lift_waypoints(situation: Situation, name: str) -> tuple[Waypoint, ...]:
    """Return the way that takes a block up from wherever it lies."""
    block, place = choose_grip(situation, name), situation.place_of(name)
    lean_rad = 0.0
    approach: tuple[Waypoint, ...]
    if place == "drawer":
        approach = (
            Waypoint(block, (0.0, 0.0, 0.15), closed=False, tolerance_m=0.03, jitter=1.0, watched=True),
            Waypoint(block, (0.0, 0.0, 0.046), closed=False, tolerance_m=0.014, watched=True),
        )
        away = Waypoint(block, (0.0, 0.0, 0.14), closed=True, tolerance_m=0.02)
    elif place == "slider":
        # In from the front and out the same way: the hand is wider than the cabinet is deep.
        lean_rad = LEAN_RAD
        approach = (
            Waypoint(block, (0.0, -0.09, 0.13), closed=False, tolerance_m=0.03, jitter=1.0, lean_rad=lean_rad, watched=True),
            Waypoint(block, (0.0, -0.015, 0.05), closed=False, tolerance_m=0.022, lean_rad=lean_rad, watched=True),
        )
        away = Waypoint(block, (0.0, -0.08, 0.12), closed=True, tolerance_m=0.02, lean_rad=lean_rad)
    else:
        lean_rad = _lean_on_table(situation, name)
        approach = _approach_on_table(block, lean_rad=lean_rad)
        away = Waypoint(block, (0.0, 0.0, 0.11), closed=True, tolerance_m=0.02, towards_base_m=0.08, lean_rad=lean_rad)
    door = _open_before(situation, name) if place == "slider" and not is_at(situation, name) else ()
    return (*door, *grasp(situation, name, block, approach, lean_rad=lean_rad), away)


def _open_before(situation: Situation, name: str) -> tuple[Waypoint, ...]:
    """Return the way that moves the sliding door away from a block that it hides or leaves no room at, or nothing."""
    low_m, high_m = situation.door_x_m()
    x_m = float(situation.block_pose(name)[0])
    to_left = x_m > 0.5 * (low_m + high_m)
    gap_m = x_m - high_m if to_left else low_m - x_m
    door_m = float(situation.scene_obs[SLIDE])
    left_to_go_m = situation.layout.slide_max_m - door_m if to_left else door_m
    if gap_m > _DOOR_GAP_M or left_to_go_m < _DOOR_AT_END_M:
        return ()
    drag = door_waypoints(situation.layout, to_left=to_left, travel_m=left_to_go_m)
    leave = Waypoint(drag[-1].anchor, (0.0, -0.12, 0.06), closed=False, tolerance_m=0.035)
    return (*drag, leave)


def lift(layout: TableLayout, *, block: str, place: str) -> Script:  # found where it lies, whatever `place` says
    height = block_slice(layout, block).start + 2
    return Script(
        plan=lambda situation: lift_waypoints(situation, block),
        goal=lambda start, now: bool(now[height] - start[height] > _RISE_M),
        grasp_jitter_m=(0.004, 0.004, 0.003),
        approach_jitter_m=(0.005, 0.005, 0.02),
        keeps=lambda situation: is_held(situation, block),
        goes_on=lambda situation: is_at(situation, block),
    )


# --- push and rotate ----------------------------------------------------------------------------------------------------
def push(layout: TableLayout, *, block: str, side: str) -> Script:
    """Grip the block and drag it along the table; failing that, shove it from its far side with closed fingers."""
    sign = -1.0 if side == "left" else 1.0
    beside_m = -sign * (0.5 * layout.block_lengths_m[block] + 0.05)
    place = block_slice(layout, block).start

    anchor = _centre_of(layout, block)
    shove = (
        Waypoint(anchor, (beside_m, 0.0, 0.09), closed=True, tolerance_m=0.03, jitter=1.0, watched=True),
        Waypoint(anchor, (beside_m, 0.0, 0.006), closed=True, tolerance_m=0.012, watched=True),
        Waypoint(anchor, (0.12 * sign, 0.0, 0.006), closed=True, tolerance_m=0.012, speed=0.7),
    )

    def plan(situation: Situation) -> tuple[Waypoint, ...]:
        now_m = situation.block_pose(block)[:2]
        behind_m = now_m + np.array([beside_m, 0.0])
        in_reach = math.dist(behind_m, BASE_POSITION_M[:2]) < _REACH_M and behind_m[1] < _FACE_Y_M
        if in_reach and situation.attempt % 2 == 1 and not is_held(situation, block):
            return shove
        # What an earlier try moved counts, unless it moved the block the wrong way.
        done_m = sign * (now_m[0] - situation.start_scene[place])
        return _drag(situation, block, sign * float(np.clip(0.12 - done_m, 0.04, 0.12)))

    return Script(
        plan=plan,
        goal=lambda start, now: bool(sign * (now[place] - start[place]) > 0.105),
        grasp_jitter_m=(0.004, 0.004, 0.003),
        approach_jitter_m=(0.01, 0.01, 0.02),
        keeps=lambda situation: is_held(situation, block),
        goes_on=lambda situation: is_at(situation, block),
    )


def _drag(situation: Situation, block: str, by_x_m: float) -> tuple[Waypoint, ...]:
    """Grip a block and drag it over the table, which it keeps touching as a pushed block does."""
    lean_rad = _lean_on_table(situation, block)
    grip = choose_grip(situation, block)
    start = fixed(grip(situation.scene_obs).position_m)
    return (
        *grasp(situation, block, grip, _approach_on_table(grip, lean_rad=lean_rad), lean_rad=lean_rad),
        Waypoint(start, (by_x_m, 0.0, 0.004), closed=True, tolerance_m=0.015, turn_rad=None, speed=0.7),
        Waypoint(start, (by_x_m, 0.0, 0.004), closed=False, tolerance_m=0.03, dwell_steps=3, turn_rad=None),
        Waypoint(start, (by_x_m, 0.0, 0.08), closed=False, tolerance_m=0.03, turn_rad=None),
    )


def rotate(layout: TableLayout, *, block: str, side: str) -> Script:
    """Grip the block where it stands and turn it without lifting it."""
    turn_rad = _TURN_RAD if side == "left" else -_TURN_RAD
    yaw = block_slice(layout, block).start + 5

    def plan(situation: Situation) -> tuple[Waypoint, ...]:
        grip, low = choose_grip(situation, block, turn_rad=turn_rad), (0.0, 0.0, 0.004)
        lean_rad = _lean_on_table(situation, block)
        left_rad = turn_rad
        if is_held(situation, block):
            done = float(wrap_angle(situation.block_pose(block)[5] - situation.start_scene[yaw])) / turn_rad
            left_rad *= min(max(1.0 - done, 0.2), 1.0)
        return (
            *grasp(situation, block, grip, _approach_on_table(grip, lean_rad=lean_rad), lean_rad=lean_rad),
            Waypoint(grip, low, closed=True, tolerance_m=0.03, turn_rad=left_rad),
            Waypoint(grip, (0.0, 0.0, 0.004), closed=False, tolerance_m=0.03, dwell_steps=2, turn_rad=None),
            Waypoint(grip, (0.0, 0.0, 0.06), closed=False, tolerance_m=0.03, turn_rad=None),
        )

    return Script(
        plan=plan,
        goal=lambda start, now: bool(np.sign(turn_rad) * wrap_angle(now[yaw] - start[yaw]) > math.radians(62.0)),
        grasp_jitter_m=(0.003, 0.003, 0.002),
        approach_jitter_m=(0.005, 0.005, 0.02),
        keeps=lambda situation: is_held(situation, block),
        goes_on=lambda situation: is_at(situation, block),
    )


# --- push into the drawer -----------------------------------------------------------------------------------------------
def push_into_drawer(layout: TableLayout) -> Script:
    """Shove a block from behind over the table's front edge, so that it falls into the open drawer."""

    def plan(situation: Situation) -> tuple[Waypoint, ...]:
        to_go_m = dimensions.DRAWER_MAX_M - float(situation.scene_obs[DRAWER])
        if to_go_m > _DRAWER_NARROW_M:
            # Through a narrow gap the block may come to lie on the drawer's front instead of in it.
            above = Waypoint(drawer_handle(layout), (0.0, 0.04, 0.20), closed=True, tolerance_m=0.03)
            return (*drawer_waypoints(layout, travel_m=to_go_m + 0.01), above)
        name, beside_m = _pushed_block(situation)
        if abs(beside_m) > _DRAWER_REACH_X_M:
            return _drag(situation, name, math.copysign(_DRAWER_AIM_X_M, beside_m) - beside_m)
        # Half of the block as seen along the way of the push.
        length_m = layout.block_lengths_m[name]
        yaw_rad = situation.block_pose(name)[5]
        half_m = 0.5 * (abs(math.sin(yaw_rad)) * length_m + abs(math.cos(yaw_rad)) * dimensions.BLOCK_WIDTH_M)
        behind_m = half_m + 0.03
        anchor = _centre_of(layout, name)
        over_m = _EDGE_Y_M - float(situation.block_pose(name)[1]) + half_m - 0.03
        return (
            Waypoint(anchor, (0.0, behind_m, 0.10), closed=True, tolerance_m=0.03, jitter=1.0, lean_rad=0.4, watched=True),
            Waypoint(anchor, (0.0, behind_m, 0.004), closed=True, tolerance_m=0.012, lean_rad=0.4, watched=True),
            Waypoint(anchor, (0.0, over_m, 0.006), closed=True, tolerance_m=0.012, lean_rad=0.2, speed=0.8),
        )

    def goal(start: Float64Array, now: Float64Array) -> bool:
        return any(
            start[block_slice(layout, block)][2] > 0.42 and now[block_slice(layout, block)][2] < 0.41 for block in BLOCKS
        )

    def keeps(situation: Situation) -> bool:
        name, beside_m = _pushed_block(situation)
        is_open = dimensions.DRAWER_MAX_M - float(situation.scene_obs[DRAWER]) <= _DRAWER_NARROW_M
        return is_open and abs(beside_m) > _DRAWER_REACH_X_M and is_held(situation, name)

    return Script(
        plan=plan,
        goal=goal,
        grasp_jitter_m=(0.004, 0.003, 0.002),
        approach_jitter_m=(0.01, 0.005, 0.02),
        keeps=keeps,
        goes_on=keeps,
    )


def _pushed_block(situation: Situation) -> tuple[str, float]:
    """Return the block that is the easiest to push over the edge, with nothing in its way, and its x from the drawer's."""
    centre_m = situation.layout.drawer_x_m

    def cost(block: str) -> float:
        x_m, y_m, _ = (float(value) for value in situation.block_pose(block)[:3])
        on_table = situation.place_of(block) == "table" and not situation.is_covered(block)
        beside = max(0.0, abs(x_m - centre_m) - 0.16)
        in_front = any(
            abs(other[0] - x_m) < 0.07 and -0.12 < other[1] - y_m < 0.0 and abs(other[2] - 0.46) < 0.02
            for other in (situation.block_pose(name) for name in BLOCKS if name != block)
        )
        return (0.0 if on_table else 10.0) + 20.0 * beside + (2.0 if in_front else 0.0) + abs(y_m - _EDGE_Y_M)

    name = min(BLOCKS, key=cost)
    return name, float(situation.block_pose(name)[0]) - centre_m
