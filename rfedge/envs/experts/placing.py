"""Scripts that move a block from one place to another: place, stack and unstack."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from rfedge.envs.experts.grip import choose_grip, face_yaw_rad
from rfedge.envs.experts.handling import LEAN_RAD, grasp, lift_waypoints
from rfedge.envs.experts.script import DRAWER, Anchor, AnchorFinder, Script, Situation, Waypoint, fixed
from rfedge.envs.interface import BLOCKS, Float64Array
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import BASE_POSITION_M, TableLayout
from rfedge.envs.playtable.placement import block_slice

_HALF_BLOCK_M: Final = 0.5 * dimensions.BLOCK_WIDTH_M
# Where in the cabinet a block is let down, and how far from another block it is let down or, nearer, dropped.
_SHELF_Y_M: Final = 0.09
_SHELF_MARGIN_M: Final = 0.05
_BESIDE_M: Final = 0.10
_DROP_M: Final = 0.05
# Where over the open drawer: x from its centre, y from y = 0 of the closed drawer.
_DRAWER_X_M: Final = (-0.12, 0.0, 0.12)
_DRAWER_Y_M: Final = -0.085
_BUTTON_HALF_M: Final = 0.035
_BUTTON_ROOM_M: Final = 0.006
_MAX_SHIFT_M: Final = 0.014
_AIR_Z_M: Final = 0.485  # the centre of a block that lies on table or shelf is lower


def _carried_block(situation: Situation) -> tuple[str, tuple[Waypoint, ...]]:
    """Return the block that the task is about, and the way that takes it up again when it was dropped."""
    held = situation.held_block()
    if held is not None:
        return held, ()
    name = situation.nearest_block()
    return name, lift_waypoints(situation, name)


def _let_go(
    spot: AnchorFinder, away_m: tuple[float, float, float], at_m: tuple[float, float, float]
) -> tuple[Waypoint, ...]:
    return (
        Waypoint(spot, at_m, closed=False, tolerance_m=0.08, dwell_steps=3, turn_rad=None),
        Waypoint(spot, away_m, closed=False, tolerance_m=0.03, turn_rad=None),
    )


def place_in_slider(layout: TableLayout) -> Script:
    """Take the held block over the cabinet's edge, let it down behind it and come out again."""

    def plan(situation: Situation) -> tuple[Waypoint, ...]:
        name, regrasp = _carried_block(situation)
        spot_m, is_tight = _shelf_spot(situation, name)
        spot, low_m = fixed(spot_m), _DROP_M if is_tight else 0.004
        return (
            *regrasp,
            Waypoint(spot, (0.0, -0.13, 0.14), closed=True, tolerance_m=0.035, jitter=1.0, lean_rad=LEAN_RAD, carried=name),
            Waypoint(spot, (0.0, -0.03, 0.08), closed=True, tolerance_m=0.022, lean_rad=LEAN_RAD, carried=name),
            Waypoint(spot, (0.0, 0.0, low_m), closed=True, tolerance_m=0.012, lean_rad=LEAN_RAD, carried=name),
            *_let_go(spot, (0.0, -0.13, 0.14), (0.0, 0.0, low_m + 0.01)),
        )

    return Script(
        plan=plan,
        goal=lambda start, now: _is_placed(layout, start, now, lambda y_m, z_m: y_m > 0.03 and z_m < _AIR_Z_M),
        grasp_jitter_m=(0.006, 0.003, 0.002),
        approach_jitter_m=(0.01, 0.01, 0.02),
        keeps=lambda situation: situation.held_block() is not None,
    )


def _shelf_spot(situation: Situation, name: str) -> tuple[Float64Array, bool]:
    """Return where in the open part of the cabinet the block goes (3,), and whether another block is near."""
    low_m, high_m = situation.open_cabinet_x_m()
    others = [
        float(situation.block_pose(other)[0]) for other in BLOCKS if other != name and situation.place_of(other) == "slider"
    ]
    candidates = np.linspace(low_m + _SHELF_MARGIN_M, high_m - _SHELF_MARGIN_M, 15)
    centre_m = 0.5 * (low_m + high_m)
    room = [min([_BESIDE_M, *(abs(x_m - other) for other in others)]) for x_m in candidates]
    best = max(range(len(candidates)), key=lambda index: (round(room[index], 3), -abs(candidates[index] - centre_m)))
    return np.array([candidates[best], _SHELF_Y_M, dimensions.PLANK_TOP_M + _HALF_BLOCK_M]), room[best] < _BESIDE_M - 1e-6


def place_in_drawer(layout: TableLayout) -> Script:
    def plan(situation: Situation) -> tuple[Waypoint, ...]:
        name, regrasp = _carried_block(situation)
        spot = fixed(_drawer_spot(situation, name))
        return (
            *regrasp,
            Waypoint(spot, (0.0, 0.0, 0.20), closed=True, tolerance_m=0.03, jitter=1.0, level=True, carried=name),
            Waypoint(spot, (0.0, 0.0, 0.03), closed=True, tolerance_m=0.02, level=True, carried=name),
            *_let_go(spot, (0.0, 0.0, 0.20), (0.0, 0.0, 0.04)),
        )

    return Script(
        plan=plan,
        goal=lambda start, now: _is_placed(layout, start, now, lambda _, z_m: z_m < 0.41),
        grasp_jitter_m=(0.015, 0.008, 0.006),
        approach_jitter_m=(0.01, 0.01, 0.02),
        keeps=lambda situation: situation.held_block() is not None,
    )


def _drawer_spot(situation: Situation, name: str) -> Float64Array:
    layout = situation.layout
    y_m = _DRAWER_Y_M - float(situation.scene_obs[DRAWER])
    others = [situation.block_pose(other)[:2] for other in BLOCKS if other != name and situation.place_of(other) == "drawer"]

    def cost(x_m: float) -> float:
        crowding = sum(max(0.0, 0.1 - float(np.linalg.norm(np.array([x_m, y_m]) - other))) for other in others)
        return 20.0 * crowding + abs(x_m - float(situation.tcp_m[0]))

    x_m = min((layout.drawer_x_m + offset_m for offset_m in _DRAWER_X_M), key=cost)
    return np.array([x_m, y_m, dimensions.DRAWER_FLOOR_M + _HALF_BLOCK_M])


def _is_placed(layout: TableLayout, start: Float64Array, now: Float64Array, where: Callable[[float, float], bool]) -> bool:
    """Return whether a block that was up in the air now lies where it should."""
    return any(
        start[block_slice(layout, block)][2] > _AIR_Z_M and where(*now[block_slice(layout, block)][1:3]) for block in BLOCKS
    )


def stack(layout: TableLayout) -> Script:
    def plan(situation: Situation) -> tuple[Waypoint, ...]:
        name, regrasp = _carried_block(situation)
        base = _stack_base(situation, name)
        pose = situation.block_pose(base)
        # The faces line up modulo a quarter turn; the base is watched, because it may be knocked on the way.
        yaw_rad, _ = face_yaw_rad(layout, base, pose)
        shift_m = _off_button_m(layout, pose)

        def top(scene: Float64Array) -> Anchor:
            position_m = scene[block_slice(layout, base)][:3] + shift_m
            return Anchor(position_m, yaw_rad, math.pi / 2)

        height_m = dimensions.BLOCK_WIDTH_M if pose[2] < 0.475 else dimensions.BLOCK_WIDTH_M + 0.01
        low = (0.0, 0.0, height_m + 0.003)
        on_top = Waypoint(top, low, closed=True, tolerance_m=0.006, level=True, watched=True, carried=name)
        return (
            *regrasp,
            Waypoint(top, (0.0, 0.0, 0.11), closed=True, tolerance_m=0.03, jitter=1.0, level=True, carried=name),
            replace(on_top, offset_m=(0.0, 0.0, height_m + 0.02), tolerance_m=0.008),
            on_top,
            *_let_go(fixed(pose[:3].copy()), (0.0, 0.0, 0.16), (0.0, 0.0, height_m + 0.006)),
        )

    def goal(start: Float64Array, now: Float64Array) -> bool:
        heights = [now[block_slice(layout, block)][:3] for block in BLOCKS]
        return any(
            np.linalg.norm(a[:2] - b[:2]) < 0.04 and 0.03 < a[2] - b[2] < 0.07
            for a in heights
            for b in heights
            if a is not b
        )

    return Script(
        plan=plan,
        goal=goal,
        grasp_jitter_m=(0.003, 0.003, 0.0),
        approach_jitter_m=(0.005, 0.005, 0.02),
        keeps=lambda situation: situation.held_block() is not None,
    )


def _off_button_m(layout: TableLayout, pose: Float64Array) -> Float64Array:
    """Return how far (3,) off the lower block's centre the upper one goes, so that it does not lean on the button's cap."""
    dx_m, dy_m = pose[:2] - np.array(layout.button_xy_m)
    missing_m = max(0.0, _BUTTON_HALF_M + _HALF_BLOCK_M + _BUTTON_ROOM_M - abs(dx_m))
    beside = abs(dy_m) < _BUTTON_HALF_M + dimensions.BLOCK_WIDTH_M
    return np.array([math.copysign(min(missing_m, _MAX_SHIFT_M), dx_m) if beside else 0.0, 0.0, 0.0])


def _stack_base(situation: Situation, name: str) -> str:
    """Return the block to stack on: preferably on the table, near the held one, near the base and large."""
    preference = {"table": 0.0, "drawer": 1.0, "slider": 2.0, "above": 3.0}

    def cost(block: str) -> float:
        at_m = situation.block_pose(block)[:2]
        # Nearness keeps the choice while the arm is on its way, so that whoever imitates it can tell which it was.
        reach_m = math.dist(at_m, BASE_POSITION_M[:2]) + 1.5 * math.dist(at_m, situation.tcp_m[:2])
        return preference[situation.place_of(block)] + reach_m - situation.layout.block_lengths_m[block]

    return min((block for block in BLOCKS if block != name), key=cost)


def unstack(layout: TableLayout) -> Script:
    """Grip the upper block and take it off, then put it on the table."""

    def plan(situation: Situation) -> tuple[Waypoint, ...]:
        name = max(BLOCKS, key=lambda block: float(situation.block_pose(block)[2]))
        block = choose_grip(situation, name)
        spot = fixed(situation.free_table_spot(name))
        approach = (
            Waypoint(
                block, (0.0, 0.0, 0.075), closed=False, tolerance_m=0.03, jitter=1.0, towards_base_m=0.03, watched=True
            ),
            Waypoint(block, (0.0, 0.0, 0.046), closed=False, tolerance_m=0.014, watched=True),
        )
        return (
            *grasp(situation, name, block, approach),
            Waypoint(block, (0.0, 0.0, 0.06), closed=True, tolerance_m=0.02),
            Waypoint(spot, (0.0, 0.0, 0.09), closed=True, tolerance_m=0.03, carried=name),
            Waypoint(spot, (0.0, 0.0, 0.004), closed=True, tolerance_m=0.012, carried=name),
            *_let_go(spot, (0.0, 0.0, 0.12), (0.0, 0.0, 0.01)),
        )

    def goal(start: Float64Array, now: Float64Array) -> bool:
        return all(now[block_slice(layout, block)][2] < _AIR_Z_M for block in BLOCKS)

    return Script(
        plan=plan,
        goal=goal,
        grasp_jitter_m=(0.004, 0.004, 0.003),
        approach_jitter_m=(0.005, 0.005, 0.02),
        keeps=lambda situation: situation.held_block() is not None,
    )
