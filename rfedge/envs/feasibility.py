"""Which tasks can be begun in the present state, so that tasks can follow each other without a reset.

The oracle's own preconditions decide (CALVIN's task definitions: where a block lies, how far a door can still go, what
is held), and beside them whether the arm gets there: a block behind the door or at the far corner is not asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from rfedge.envs.interface import BLOCKS, ROBOT, TABLE, Float64Array, SceneInfo
from rfedge.envs.oracle import LIFT_FROM
from rfedge.envs.playtable.layout import BASE_POSITION_M, DRAWER_MAX_M, TABLE_TOP_M, TableLayout, find_layout
from rfedge.envs.tasks import KINDS, TASKS, check_task
from rfedge.robot.rotations import matrix_to_euler, quaternion_to_matrix

_PLACES: Final = {link: place for place, (link, _) in LIFT_FROM.items()}
# The oracle asks for 0.15 m of sliding door and 0.12 m of drawer; a little more must be left to go.
_SLIDE_LEFT_M: Final = 0.17
_DRAWER_LEFT_M: Final = 0.14
_DRAWER_OPEN_M: Final = 0.15
# Horizontal distance from the base at which an upright gripper still comes down to the table. A part of CALVIN's random
# area lies beyond it; an episode should not start with a block that cannot be gripped.
REACH_M: Final = 0.77
# Nearer to the cabinet than this an open finger meets the handle of the sliding door or the lever of the switch.
CABINET_Y_M: Final = -0.07
_BLOCK_Z_M: Final = (TABLE_TOP_M + 0.01, TABLE_TOP_M + 0.05)  # of a centre, lying or standing on end
HALF_HAND_M: Final = 0.107
SHELF_YAW_RAD: Final = math.pi / 8  # as CALVIN's benchmark places them
DRAWER_YAW_RAD: Final = 0.7
# A block to be rotated starts within this of the neutral gripper's yaw: turning the wrist to it and then the block would
# not fit into one window of 64 frames.
ROTATE_YAW_RAD: Final = 0.8
_DRAWER_HALF_X_M: Final = 0.13
_FINGER_ROOM_M: Final = 0.10  # between the centres of a block that is gripped and its neighbour
PUSH_ROOM_M: Final = 0.12  # free table ahead of a block that is to be pushed
BEHIND_M: Final = 0.09  # where the fingers stand behind it
_LANE_M: Final = 0.08


@dataclass(frozen=True, slots=True)
class _View:
    """One moment in the words in which preconditions are written."""

    layout: TableLayout
    slide_m: float
    drawer_m: float
    lights: Mapping[str, bool]
    places: Mapping[str, str]  # block -> "table", "slider", "drawer", "block" (on another one), "held" or "elsewhere"
    positions_m: Mapping[str, Float64Array]  # block -> (3,)
    turns_rad: Mapping[str, float]  # block -> how far its faces are turned from the gripper's neutral yaw, 0 to pi/2

    @property
    def is_holding(self) -> bool:
        return "held" in self.places.values()

    def blocks_on(self, place: str) -> tuple[str, ...]:
        return tuple(block for block in BLOCKS if self.places[block] == place)


def feasible_tasks(
    info: SceneInfo, scene: str, tasks: Iterable[str] = TASKS, *, with_sequel: bool = False
) -> tuple[str, ...]:
    """Return those of `tasks` that can be begun now; `with_sequel` leaves out lifts that none of `tasks` could follow.

    Raises ConfigError where a task or the scene is unknown.
    """
    tasks = tuple(check_task(task) for task in tasks)
    view = _look(info, find_layout(scene))
    possible = tuple(task for task in tasks if _is_feasible(task, view))
    if not with_sequel:
        return possible
    return tuple(task for task in possible if not task.startswith("lift_") or _has_sequel(view, task, tasks))


def gripped_blocks(info: SceneInfo) -> tuple[str, ...]:
    """Return the blocks that the robot touches with two of its links, which means with both fingers."""
    return tuple(block for block in BLOCKS if len([body for body, _ in info.blocks[block].contacts if body == ROBOT]) > 1)


def _has_sequel(view: _View, lift: str, tasks: tuple[str, ...]) -> bool:
    lifted = f"block_{lift.split('_')[1]}"
    after = replace(view, places={**view.places, lifted: "held"})
    return any(_is_feasible(task, after) for task in tasks)


def _look(info: SceneInfo, layout: TableLayout) -> _View:
    turns_rad = {}
    for block in BLOCKS:
        yaw_rad = float(matrix_to_euler(quaternion_to_matrix(info.blocks[block].orientation_xyzw))[2])
        turns_rad[block] = abs(math.remainder(yaw_rad - 0.5 * math.pi, math.pi))
    return _View(
        layout=layout,
        slide_m=info.doors["base__slide"],
        drawer_m=info.doors["base__drawer"],
        lights=info.lights,
        places={block: _place_of(block, info) for block in BLOCKS},
        positions_m={block: info.blocks[block].position_m for block in BLOCKS},
        turns_rad=turns_rad,
    )


def _place_of(block: str, info: SceneInfo) -> str:
    contacts = info.blocks[block].contacts
    bodies = {body for body, _ in contacts}
    if bodies == {ROBOT}:
        return "held" if {body for body, _ in info.robot_contacts} == {block} else "elsewhere"
    bodies.discard(ROBOT)
    if bodies & set(BLOCKS):
        # Leaning on or carrying another block, it is neither on top of one nor free.
        return "block" if bodies <= set(BLOCKS) else "elsewhere"
    links = {link for body, link in contacts if body == TABLE}
    for link in ("plank_link", "drawer_link"):
        if link in links:
            return _PLACES[link]
    on_table = links == {"base_link"} and _BLOCK_Z_M[0] < info.blocks[block].position_m[2] < _BLOCK_Z_M[1]
    return "table" if on_table else "elsewhere"


def _is_near(x_m: float, y_m: float) -> bool:
    return math.hypot(x_m - BASE_POSITION_M[0], y_m - BASE_POSITION_M[1]) <= REACH_M and y_m < CABINET_Y_M


def _neighbours(view: _View, block: str) -> list[Float64Array]:
    """Return where the other blocks on the table are, seen from `block`: (2,) each."""
    return [view.positions_m[other][:2] - view.positions_m[block][:2] for other in view.blocks_on("table") if other != block]


def _is_graspable_on_table(view: _View, block: str) -> bool:
    x_m, y_m = view.positions_m[block][:2]
    apart = all(float(np.linalg.norm(offset)) > _FINGER_ROOM_M for offset in _neighbours(view, block))
    return view.places[block] == "table" and _is_near(float(x_m), float(y_m)) and apart


def _can_lift(view: _View, *, block: str, place: str) -> bool:
    if view.is_holding or view.places[block] != place:
        return False
    x_m = float(view.positions_m[block][0])
    if place == "table":
        return _is_graspable_on_table(view, block)
    if place == "drawer":
        inside = abs(x_m - view.layout.drawer_x_m) < _DRAWER_HALF_X_M
        return view.drawer_m > _DRAWER_OPEN_M and inside and view.turns_rad[block] < DRAWER_YAW_RAD
    fits = any(low_m + HALF_HAND_M < x_m < high_m - HALF_HAND_M for low_m, high_m in _open_cabinet(view))
    return fits and view.turns_rad[block] < SHELF_YAW_RAD


def _open_cabinet(view: _View) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the two parts of the cabinet's opening that the door leaves free, as x ranges."""
    low_m, high_m = view.layout.opening_x_m
    door_low_m, door_high_m = (x_m - view.slide_m for x_m in view.layout.door_x_m)
    return (low_m, door_low_m), (door_high_m, high_m)


def _can_rotate(view: _View, *, block: str, side: str) -> bool:  # to either side alike
    return not view.is_holding and _is_graspable_on_table(view, block) and view.turns_rad[block] < ROTATE_YAW_RAD


def _can_push(view: _View, *, block: str, side: str) -> bool:
    sign = -1.0 if side == "left" else 1.0
    x_m, y_m = (float(value) for value in view.positions_m[block][:2])
    low_m, high_m = view.layout.table_area_m[0]
    has_room = _is_near(x_m - sign * BEHIND_M, y_m) and low_m <= x_m + sign * PUSH_ROOM_M <= high_m
    ahead = (-BEHIND_M - _FINGER_ROOM_M, PUSH_ROOM_M + _FINGER_ROOM_M)  # along the push: where the hand and block will be
    lane_is_free = not any(
        ahead[0] < sign * float(along_m) < ahead[1] and abs(float(beside_m)) < _LANE_M
        for along_m, beside_m in _neighbours(view, block)
    )
    return not view.is_holding and view.places[block] == "table" and has_room and lane_is_free


def _can_push_into_drawer(view: _View) -> bool:
    # As in CALVIN's chains: with two blocks on the table it would not be clear which one is meant.
    alone = view.blocks_on("table")
    open_enough = not view.is_holding and view.drawer_m > _DRAWER_OPEN_M
    return open_enough and len(alone) == 1 and _is_graspable_on_table(view, alone[0])


def _can_unstack(view: _View) -> bool:
    on_top = (view.positions_m[block] for block in view.blocks_on("block"))
    return not view.is_holding and any(_is_near(float(top[0]), float(top[1])) for top in on_top)


def _can_move_slider(view: _View, *, side: str) -> bool:
    to_go_m = view.layout.slide_max_m - view.slide_m if side == "left" else view.slide_m
    return not view.is_holding and to_go_m > _SLIDE_LEFT_M


# kind of task -> its precondition, called with the words of `rfedge.envs.tasks.KINDS`
_PRECONDITIONS: Final[dict[str, Callable[..., bool]]] = {
    "rotate": _can_rotate,
    "push": _can_push,
    "lift": _can_lift,
    "turn": lambda view, light, wanted: not view.is_holding and view.lights[light] != wanted,
    "move_slider": _can_move_slider,
    "open_drawer": lambda view: not view.is_holding and DRAWER_MAX_M - view.drawer_m > _DRAWER_LEFT_M,
    "close_drawer": lambda view: not view.is_holding and view.drawer_m > _DRAWER_LEFT_M,
    "place_in_slider": lambda view: (
        view.is_holding and any(high - low > 2.0 * HALF_HAND_M for low, high in _open_cabinet(view))
    ),
    "place_in_drawer": lambda view: view.is_holding and view.drawer_m > _DRAWER_OPEN_M,
    "stack_block": lambda view: (
        view.is_holding and any(_is_graspable_on_table(view, block) for block in view.blocks_on("table"))
    ),
    "unstack_block": _can_unstack,
    "push_into_drawer": _can_push_into_drawer,
}


def _is_feasible(task: str, view: _View) -> bool:
    kind, words = KINDS[task]
    return _PRECONDITIONS[kind](view, **words)
