"""Preparation before a script: letting go of what is not wanted, and leaving the place where the last task ended."""

from __future__ import annotations

from typing import Final

import numpy as np

from rfedge.envs.experts.script import Script, Waypoint, fixed
from rfedge.envs.experts.situation import Situation
from rfedge.envs.interface import Float64Array

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
