"""Chooses at which faces and how far off centre to grip a block, so that both fingers have room."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Final

import numpy as np

from rfedge.envs.experts.script import DRAWER, POINTING_YAW_RAD, Anchor, AnchorFinder, Situation
from rfedge.envs.interface import BLOCKS, Float64Array
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import TableLayout
from rfedge.envs.playtable.placement import block_slice
from rfedge.robot.rotations import euler_to_matrix, wrap_angle

# An open finger, seen from above: its centre's distance from the tcp along the opening, and the room it needs around it.
_FINGER_M: Final = 0.047
_FINGER_ROOM_M: Final = 0.016
# The open gripper is twice as wide as a block, so it may stand this far off the block's centre.
_SHIFTS_M: Final = (0.0, -0.008, 0.008, -0.015, 0.015)
# The last joint turns against the yaw; further right on the table the arm itself already turns the hand (measured).
_WRIST_AT_X0_RAD: Final = 0.6
_WRIST_PER_X_RAD_M: Final = -1.4
_WRIST_LIMIT_RAD: Final = 2.7
_SAME_LEVEL_M: Final = 0.045
_PER_METRE: Final = 100.0  # cost of missing room, against radians of wrist
_PER_TURN: Final = 0.5  # cost of turning the gripper from where it is, against radians of wrist
_PER_TURN_AT_BLOCK: Final = 5.0
# An open gripper this near over a block, and turned to its faces this well, only goes down and closes.
_AROUND_M: Final = 0.014
_AROUND_Z_M: Final = (-0.01, 0.05)
_AROUND_RAD: Final = 0.2


def face_yaw_rad(layout: TableLayout, block: str, pose: Float64Array) -> tuple[float, float]:
    """Return a yaw at which the fingers close on the narrow side of a block at `pose` (6,), and its symmetry."""
    rotation = euler_to_matrix(pose[3:])
    # A block that stands on end shows a square from above, as a cube does: either pair of faces can be gripped.
    upended = abs(rotation[2, 0]) > 0.7
    side = rotation[:, 1] if upended else rotation[:, 0]
    is_square = upended or layout.block_lengths_m[block] <= dimensions.BLOCK_WIDTH_M
    return math.atan2(side[1], side[0]), math.pi / 2 if is_square else math.pi


def is_around(situation: Situation, block: str) -> bool:
    """Return whether the open gripper stands over or around the block, ready to close on it."""
    pose, tcp_m = situation.block_pose(block), situation.tcp_m
    face_rad, symmetry_rad = face_yaw_rad(situation.layout, block, pose)
    off_rad = math.remainder(float(situation.robot_obs[5]) - face_rad, symmetry_rad)
    low_m, high_m = _AROUND_Z_M
    above = float(np.linalg.norm(tcp_m[:2] - pose[:2])) < _AROUND_M and low_m < tcp_m[2] - pose[2] < high_m
    return not situation.gripper_closed and above and abs(off_rad) < _AROUND_RAD


def choose_grip(situation: Situation, block: str, *, turn_rad: float = 0.0) -> AnchorFinder:
    """Return an anchor that follows the block: where the tcp goes, at a yaw from which the wrist can turn by `turn_rad`."""
    layout = situation.layout
    pose = situation.block_pose(block)
    face_rad, symmetry_rad = face_yaw_rad(layout, block, pose)
    rest_rad = _WRIST_AT_X0_RAD + _WRIST_PER_X_RAD_M * float(pose[0])
    fingers_m = _missing_room(situation, block)
    # Between equal grips the nearer one: so one that was begun is kept.
    begun = situation.held_block() == block or is_around(situation, block)
    at_rad, per_turn = float(situation.robot_obs[5]), _PER_TURN_AT_BLOCK if begun else _PER_TURN

    def cost(choice: tuple[int, float]) -> float:
        turns, shift_m = choice
        yaw_rad = face_rad + turns * symmetry_rad
        wrist_rad = float(wrap_angle(yaw_rad - POINTING_YAW_RAD))
        joints_rad = rest_rad - np.array([wrist_rad, wrist_rad + turn_rad])
        opening = np.array([math.cos(yaw_rad - math.pi / 2), math.sin(yaw_rad - math.pi / 2)])
        middle_m = pose[:2] + shift_m * opening
        missing_m = sum(fingers_m(middle_m + sign * _FINGER_M * opening) for sign in (-1.0, 1.0))
        beyond_rad = max(0.0, float(np.abs(joints_rad).max()) - _WRIST_LIMIT_RAD)
        away_rad = abs(float(wrap_angle(yaw_rad - at_rad)))
        return abs(wrist_rad) + per_turn * away_rad + _PER_METRE * missing_m + abs(shift_m) + 10.0 * beyond_rad

    turns, shift_m = min(itertools.product(range(-2, 3), _SHIFTS_M), key=cost)
    relative_rad = turns * symmetry_rad
    place = block_slice(layout, block)

    def find(scene: Float64Array) -> Anchor:
        now = scene[place]
        yaw_rad = face_yaw_rad(layout, block, now)[0] + relative_rad
        opening = np.array([math.cos(yaw_rad - math.pi / 2), math.sin(yaw_rad - math.pi / 2), 0.0])
        return Anchor(now[:3] + shift_m * opening, yaw_rad, 2.0 * math.pi)

    return find


def _missing_room(situation: Situation, block: str) -> Callable[[Float64Array], float]:
    """Return the metres by which obstacles come nearer than they should to a finger at a place (2,)."""
    layout, pose = situation.layout, situation.block_pose(block)
    others = [
        (other_pose, layout.block_lengths_m[other])
        for other in BLOCKS
        if other != block and abs((other_pose := situation.block_pose(other))[2] - pose[2]) < _SAME_LEVEL_M
    ]
    in_drawer, half_m = situation.place_of(block) == "drawer", dimensions.DRAWER_INNER_HALF_X_M
    front_y_m = dimensions.DRAWER_WALL_M - dimensions.TABLE_HALF_Y_M - float(situation.scene_obs[DRAWER])
    low = np.array([layout.drawer_x_m - half_m, front_y_m])
    high = np.array([layout.drawer_x_m + half_m, -dimensions.TABLE_HALF_Y_M])

    def missing_m(centre_m: Float64Array) -> float:
        total_m = 0.0
        for other, length_m in others:
            cos, sin = math.cos(other[5]), math.sin(other[5])
            x_m, y_m = np.abs(np.array([[cos, sin], [-sin, cos]]) @ (centre_m - other[:2]))
            outside = np.maximum([x_m - 0.5 * length_m, y_m - 0.5 * dimensions.BLOCK_WIDTH_M], 0.0)
            total_m += max(0.0, _FINGER_ROOM_M - float(np.hypot(*outside)))
        if in_drawer:
            total_m += max(0.0, _FINGER_ROOM_M - float(min((centre_m - low).min(), (high - centre_m).min())))
        return total_m

    return missing_m
