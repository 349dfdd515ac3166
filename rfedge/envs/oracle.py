"""Decides from two moments of a scene which of the 34 tasks was done between them.

The thresholds are those of CALVIN's task definitions. The oracle knows no simulator: it reads `SceneInfo` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from rfedge.envs.interface import BLOCKS, ROBOT, TABLE, BlockState, Contact, SceneInfo
from rfedge.envs.tasks import COLOURS, TASKS, check_task
from rfedge.robot.rotations import matrix_to_euler, quaternion_to_matrix

Predicate = Callable[[SceneInfo, SceneInfo], bool]

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


def _touches_only_blocks(block: BlockState) -> bool:
    bodies = _bodies(block.contacts)
    return bool(bodies) and bodies <= set(BLOCKS)


def _is_settled(block: BlockState) -> bool:
    speeds = np.concatenate([block.linear_velocity_m_s, block.angular_velocity_rad_s])
    return bool(np.all(np.abs(speeds) < SETTLED_SPEED))


def _rotate(start: SceneInfo, end: SceneInfo, *, block: str, to_left: bool) -> bool:
    before, after = start.blocks[block], end.blocks[block]
    turn = quaternion_to_matrix(after.orientation_xyzw) @ quaternion_to_matrix(before.orientation_xyzw).T
    x_deg, y_deg, z_deg = np.degrees(matrix_to_euler(turn))
    if max(abs(x_deg), abs(y_deg)) >= ROTATION_TILT_DEG or not _without_robot(after.contacts):
        return False
    if np.linalg.norm(after.position_m - before.position_m) > ROTATION_SHIFT_M:
        return False
    turned_deg = z_deg if to_left else -z_deg
    return bool(ROTATION_DEG < turned_deg < 180.0)


def _push(start: SceneInfo, end: SceneInfo, *, block: str, to_left: bool) -> bool:
    before, after = start.blocks[block], end.blocks[block]
    ground_before, ground_after = _without_robot(before.contacts), _without_robot(after.contacts)
    # It must stay on the surface it stood on, and not be carried.
    if not ground_before or not ground_before <= ground_after:
        return False
    moved_m = float(after.position_m[0] - before.position_m[0])
    return (-moved_m if to_left else moved_m) > PUSH_TRAVEL_M


def _move_door(start: SceneInfo, end: SceneInfo, *, door: str, travel_m: float) -> bool:
    moved_m = end.doors[door] - start.doors[door]
    return moved_m > travel_m if travel_m > 0 else moved_m < travel_m


def _lift(start: SceneInfo, end: SceneInfo, *, block: str, link: str, rise_m: float) -> bool:
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
        not _bodies(start.blocks[block].contacts) & set(BLOCKS)
        and _touches_only_blocks(end.blocks[block])
        and _is_settled(end.blocks[block])
        for block in BLOCKS
    )


def _toggle(start: SceneInfo, end: SceneInfo, *, light: str, turned_on: bool) -> bool:
    return start.lights[light] != turned_on and end.lights[light] == turned_on


def _push_into_drawer(start: SceneInfo, end: SceneInfo) -> bool:
    return any(
        start.blocks[block].contacts == {(TABLE, "base_link")}
        and (TABLE, "drawer_link") in end.blocks[block].contacts
        and ROBOT not in _bodies(end.blocks[block].contacts)
        for block in BLOCKS
    )


def _predicates() -> dict[str, Predicate]:
    bind = functools.partial
    table: dict[str, Predicate] = {
        "move_slider_left": bind(_move_door, door="base__slide", travel_m=SLIDE_TRAVEL_M),
        "move_slider_right": bind(_move_door, door="base__slide", travel_m=-SLIDE_TRAVEL_M),
        "open_drawer": bind(_move_door, door="base__drawer", travel_m=DRAWER_TRAVEL_M),
        "close_drawer": bind(_move_door, door="base__drawer", travel_m=-DRAWER_TRAVEL_M),
        "place_in_slider": bind(_place, link="plank_link"),
        "place_in_drawer": bind(_place, link="drawer_link"),
        "stack_block": _stack,
        "unstack_block": lambda start, end: _stack(end, start),
        "push_into_drawer": _push_into_drawer,
    }
    for light in ("lightbulb", "led"):
        table[f"turn_on_{light}"] = bind(_toggle, light=light, turned_on=True)
        table[f"turn_off_{light}"] = bind(_toggle, light=light, turned_on=False)
    for colour in COLOURS:
        block = f"block_{colour}"
        for side in ("left", "right"):
            table[f"rotate_{colour}_block_{side}"] = bind(_rotate, block=block, to_left=side == "left")
            table[f"push_{colour}_block_{side}"] = bind(_push, block=block, to_left=side == "left")
        for place, (link, rise_m) in LIFT_FROM.items():
            table[f"lift_{colour}_block_{place}"] = bind(_lift, block=block, link=link, rise_m=rise_m)
    return {task: table[task] for task in TASKS}


_PREDICATES: Final = _predicates()


def task_solved(task: str, start: SceneInfo, end: SceneInfo) -> bool:
    """Return whether `task` was done between `start` and `end`; raises ConfigError for an unknown task."""
    return _PREDICATES[check_task(task)](start, end)
