"""Decides from two moments of a scene which of the 34 tasks was done between them.

The thresholds are those of CALVIN's task definitions. The oracle knows no simulator: it reads `SceneInfo` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from rfedge.envs.interface import BLOCKS, ROBOT, TABLE, BlockState, Contact, SceneInfo
from rfedge.envs.tasks import KINDS, check_task
from rfedge.robot.rotations import matrix_to_euler, quaternion_to_matrix

SLIDE_TRAVEL_M: Final = 0.15
DRAWER_TRAVEL_M: Final = 0.12
PUSH_TRAVEL_M: Final = 0.1
ROTATION_DEG: Final = 60.0
ROTATION_TILT_DEG: Final = 30.0
ROTATION_SHIFT_M: Final = 0.1
SETTLED_SPEED: Final = 1.0  # per component, m/s and rad/s
# where the block lies at the start -> (link of the table, how far it must rise in metres)
LIFT_FROM: Final = {"table": ("base_link", 0.05), "slider": ("plank_link", 0.03), "drawer": ("drawer_link", 0.05)}


def _without_robot(contacts: Iterable[Contact]) -> frozenset[Contact]:
    return frozenset(contact for contact in contacts if contact[0] != ROBOT)


def _bodies(contacts: Iterable[Contact]) -> frozenset[str]:
    return frozenset(body for body, _ in contacts)


def _rests_on_blocks(block: BlockState) -> bool:
    bodies, speeds = _bodies(block.contacts), np.concatenate([block.linear_velocity_m_s, block.angular_velocity_rad_s])
    return bool(bodies) and bodies <= set(BLOCKS) and bool(np.all(np.abs(speeds) < SETTLED_SPEED))


def _rotate(start: SceneInfo, end: SceneInfo, *, block: str, side: str) -> bool:
    before, after = start.blocks[block], end.blocks[block]
    turn = quaternion_to_matrix(after.orientation_xyzw) @ quaternion_to_matrix(before.orientation_xyzw).T
    x_deg, y_deg, z_deg = np.degrees(matrix_to_euler(turn))
    if max(abs(x_deg), abs(y_deg)) >= ROTATION_TILT_DEG or not _without_robot(after.contacts):
        return False
    if np.linalg.norm(after.position_m - before.position_m) > ROTATION_SHIFT_M:
        return False
    turned_deg = z_deg if side == "left" else -z_deg
    return bool(ROTATION_DEG < turned_deg < 180.0)


def _push(start: SceneInfo, end: SceneInfo, *, block: str, side: str) -> bool:
    before, after = start.blocks[block], end.blocks[block]
    ground_before, ground_after = _without_robot(before.contacts), _without_robot(after.contacts)
    # It must stay on the surface it stood on, and not be carried.
    if not ground_before or not ground_before <= ground_after:
        return False
    moved_m = float(after.position_m[0] - before.position_m[0])
    return (-moved_m if side == "left" else moved_m) > PUSH_TRAVEL_M


def _move_door(start: SceneInfo, end: SceneInfo, *, door: str, travel_m: float) -> bool:
    moved_m = end.doors[door] - start.doors[door]
    return moved_m > travel_m if travel_m > 0 else moved_m < travel_m


def _lift(start: SceneInfo, end: SceneInfo, *, block: str, place: str) -> bool:
    link, rise_m = LIFT_FROM[place]
    before, after = start.blocks[block], end.blocks[block]
    rose = after.position_m[2] - before.position_m[2] > rise_m
    return bool(rose and (TABLE, link) in before.contacts and _bodies(after.contacts) == {ROBOT})


def _place(start: SceneInfo, end: SceneInfo, *, link: str) -> bool:
    held = _bodies(start.robot_contacts)
    if len(held) != 1:
        return False
    (block,) = held
    if block not in BLOCKS or _bodies(start.blocks[block].contacts) != {ROBOT}:
        return False
    contacts = end.blocks[block].contacts
    return ROBOT not in _bodies(contacts) and (TABLE, link) in contacts


def _stack(start: SceneInfo, end: SceneInfo) -> bool:
    return any(
        not _bodies(start.blocks[block].contacts) & set(BLOCKS) and _rests_on_blocks(end.blocks[block]) for block in BLOCKS
    )


def _push_into_drawer(start: SceneInfo, end: SceneInfo) -> bool:
    return any(
        start.blocks[block].contacts == {(TABLE, "base_link")}
        and (TABLE, "drawer_link") in end.blocks[block].contacts
        and ROBOT not in _bodies(end.blocks[block].contacts)
        for block in BLOCKS
    )


def _move_slider(start: SceneInfo, end: SceneInfo, *, side: str) -> bool:
    return _move_door(start, end, door="base__slide", travel_m=SLIDE_TRAVEL_M if side == "left" else -SLIDE_TRAVEL_M)


# kind of task -> whether it was done, called with the words of `rfedge.envs.tasks.KINDS`
_PREDICATES: Final[dict[str, Callable[..., bool]]] = {
    "rotate": _rotate,
    "push": _push,
    "lift": _lift,
    "turn": lambda start, end, light, wanted: start.lights[light] != wanted and end.lights[light] == wanted,
    "move_slider": _move_slider,
    "open_drawer": functools.partial(_move_door, door="base__drawer", travel_m=DRAWER_TRAVEL_M),
    "close_drawer": functools.partial(_move_door, door="base__drawer", travel_m=-DRAWER_TRAVEL_M),
    "place_in_slider": functools.partial(_place, link="plank_link"),
    "place_in_drawer": functools.partial(_place, link="drawer_link"),
    "stack_block": _stack,
    "unstack_block": lambda start, end: _stack(end, start),
    "push_into_drawer": _push_into_drawer,
}


def task_solved(task: str, start: SceneInfo, end: SceneInfo) -> bool:
    """Return whether `task` was done between `start` and `end`; raises ConfigError for an unknown task."""
    kind, words = KINDS[check_task(task)]
    return _PREDICATES[kind](start, end, **words)
