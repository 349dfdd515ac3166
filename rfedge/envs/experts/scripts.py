"""What the expert of each task does, as data: an anchor, waypoints around it and a goal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from rfedge.envs.experts.engine import Anchor, AnchorFinder, Expert, Script, Waypoint, WaypointExpert
from rfedge.envs.interface import Float64Array
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import SLOPE, TableLayout, find_layout
from rfedge.envs.playtable.placement import block_slice
from rfedge.envs.rotations import euler_to_matrix, wrap_angle
from rfedge.envs.tasks import COLOURS, check_task
from rfedge.errors import ConfigError, did_you_mean, explain

__all__ = ["EXPERT_TASKS", "make_expert"]

_SLIDE, _DRAWER, _SWITCH, _BULB, _LED = 0, 1, 3, 4, 5  # places in scene_obs


# --- anchors ----------------------------------------------------------------------------------------------------------
def _drawer_handle(layout: TableLayout) -> AnchorFinder:
    y_m, z_m = dimensions.DRAWER_HANDLE_YZ_M
    return lambda scene: Anchor(np.array([layout.drawer_x_m, y_m - scene[_DRAWER], z_m]))


def _slide_handle(layout: TableLayout) -> AnchorFinder:
    return lambda scene: Anchor(np.array([layout.slide_handle_x_m - scene[_SLIDE], *dimensions.SLIDE_HANDLE_YZ_M]))


def _switch_tip(layout: TableLayout) -> AnchorFinder:
    y_m, z_m = dimensions.SWITCH_TIP_YZ_M
    cos, sin = math.cos(SLOPE.tilt_rad), math.sin(SLOPE.tilt_rad)
    return lambda scene: Anchor(np.array([layout.switch_x_m, y_m + cos * scene[_SWITCH], z_m + sin * scene[_SWITCH]]))


def _button(layout: TableLayout) -> AnchorFinder:
    return lambda scene: Anchor(np.array([*layout.button_xy_m, dimensions.BUTTON_TOP_M]))


def _block(layout: TableLayout, block: str) -> AnchorFinder:
    place = block_slice(layout, block)
    is_cube = layout.block_lengths_m[block] <= dimensions.BLOCK_WIDTH_M

    def find(scene: Float64Array) -> Anchor:
        pose = scene[place]
        rotation = euler_to_matrix(pose[3:])
        # A block that stands on end shows a square from above, as a cube does: either pair of faces can be gripped.
        # A lying one is gripped across its narrow side.
        upended = abs(rotation[2, 0]) > 0.7
        side = rotation[:, 1] if upended else rotation[:, 0]
        symmetry_rad = math.pi / 2 if is_cube or upended else math.pi
        return Anchor(pose[:3].copy(), yaw_rad=math.atan2(side[1], side[0]), symmetry_rad=symmetry_rad)

    return find


# --- scripts ----------------------------------------------------------------------------------------------------------
def _open_drawer(layout: TableLayout) -> Script:
    # The fingers drop into the gap between the handle's bar and the drawer's front, and pull.
    return Script(
        anchor=_drawer_handle(layout),
        waypoints=(
            Waypoint((0.0, 0.04, 0.13), closed=True, tolerance_m=0.035, jitter=1.0),
            Waypoint((0.0, 0.04, 0.015), closed=True, tolerance_m=0.012),
            Waypoint((0.0, -0.15, 0.015), closed=True, tolerance_m=0.012),
        ),
        goal=lambda start, now: bool(now[_DRAWER] - start[_DRAWER] > 0.125),
        grasp_jitter_m=(0.06, 0.002, 0.004),
        approach_jitter_m=(0.02, 0.0, 0.03),
    )


def _close_drawer(layout: TableLayout) -> Script:
    return Script(
        anchor=_drawer_handle(layout),
        waypoints=(
            Waypoint((0.0, -0.07, 0.11), closed=True, tolerance_m=0.035, jitter=1.0),
            Waypoint((0.0, -0.06, 0.005), closed=True, tolerance_m=0.025),
            Waypoint((0.0, 0.17, 0.005), closed=True, tolerance_m=0.012),
        ),
        goal=lambda start, now: bool(start[_DRAWER] - now[_DRAWER] > 0.125),
        grasp_jitter_m=(0.06, 0.0, 0.006),
        approach_jitter_m=(0.02, 0.02, 0.02),
    )


def _move_slider(layout: TableLayout, *, to_left: bool) -> Script:
    # Open fingers stand on both sides of the handle, so the same grip drags either way.
    sign = 1.0 if to_left else -1.0
    return Script(
        anchor=_slide_handle(layout),
        waypoints=(
            Waypoint((0.0, -0.05, 0.10), closed=False, tolerance_m=0.03, jitter=1.0),
            Waypoint((0.0, -0.012, 0.01), closed=False, tolerance_m=0.012),
            Waypoint((-0.24 * sign, -0.012, 0.01), closed=False, tolerance_m=0.012),
        ),
        goal=lambda start, now: bool(sign * (now[_SLIDE] - start[_SLIDE]) > 0.155),
        grasp_jitter_m=(0.01, 0.006, 0.006),
        approach_jitter_m=(0.01, 0.02, 0.02),
    )


def _turn_on_lightbulb(layout: TableLayout) -> Script:
    # Pushed from below and in front, the lever climbs its tilted slot. Straight down the arm does not reach that far.
    return Script(
        anchor=_switch_tip(layout),
        waypoints=(
            Waypoint((0.0, -0.06, -0.01), closed=True, tolerance_m=0.025, jitter=1.0, tilt_rad=0.5),
            Waypoint((0.0, -0.005, -0.005), closed=True, tolerance_m=0.025, tilt_rad=0.5),
            Waypoint((0.0, 0.055, 0.10), closed=True, tolerance_m=0.015, tilt_rad=0.5),
        ),
        goal=lambda start, now: bool(now[_BULB] > 0.5),
        grasp_jitter_m=(0.03, 0.0, 0.006),
        approach_jitter_m=(0.01, 0.02, 0.01),
    )


def _turn_off_lightbulb(layout: TableLayout) -> Script:
    # The tilted fingers come down on top of the lever and press it back along its slot.
    return Script(
        anchor=_switch_tip(layout),
        waypoints=(
            Waypoint((0.0, -0.05, 0.10), closed=True, tolerance_m=0.03, jitter=1.0, tilt_rad=0.5),
            Waypoint((0.0, 0.005, 0.055), closed=True, tolerance_m=0.02, tilt_rad=0.5),
            Waypoint((0.0, -0.04, -0.055), closed=True, tolerance_m=0.015, tilt_rad=0.5),
        ),
        goal=lambda start, now: bool(now[_BULB] < 0.5),
        grasp_jitter_m=(0.03, 0.0, 0.0),
        approach_jitter_m=(0.01, 0.01, 0.01),
    )


def _press_button(layout: TableLayout) -> Script:
    return Script(
        anchor=_button(layout),
        waypoints=(
            Waypoint((0.0, 0.0, 0.07), closed=True, tolerance_m=0.025, jitter=1.0),
            Waypoint((0.0, 0.0, -0.002), closed=True, tolerance_m=0.008),
            Waypoint((0.0, 0.0, 0.07), closed=True, tolerance_m=0.03),
        ),
        goal=lambda start, now: bool(now[_LED] != start[_LED]),
        grasp_jitter_m=(0.015, 0.015, 0.0),
    )


def _lift(layout: TableLayout, block: str, *, approach: tuple[Waypoint, ...], away: Waypoint) -> Script:
    height = block_slice(layout, block).start + 2
    return Script(
        anchor=_block(layout, block),
        waypoints=(
            *approach,
            Waypoint((0.0, 0.0, 0.006), closed=False, tolerance_m=0.008, watched=True),
            Waypoint((0.0, 0.0, 0.006), closed=True, tolerance_m=0.02, dwell_steps=3),
            away,
        ),
        goal=lambda start, now: bool(now[height] - start[height] > 0.06),
        grasp_jitter_m=(0.004, 0.004, 0.003),
        approach_jitter_m=(0.005, 0.005, 0.02),
    )


def _lift_from_table(layout: TableLayout, block: str) -> Script:
    approach = (
        Waypoint((0.0, 0.0, 0.075), closed=False, tolerance_m=0.03, jitter=1.0, towards_base_m=0.05, watched=True),
        Waypoint((0.0, 0.0, 0.045), closed=False, tolerance_m=0.022, watched=True),
    )
    away = Waypoint((0.0, 0.0, 0.11), closed=True, tolerance_m=0.02, towards_base_m=0.08)
    return _lift(layout, block, approach=approach, away=away)


def _lift_from_drawer(layout: TableLayout, block: str) -> Script:
    approach = (
        Waypoint((0.0, 0.0, 0.15), closed=False, tolerance_m=0.03, jitter=1.0, watched=True),
        Waypoint((0.0, 0.0, 0.045), closed=False, tolerance_m=0.022, watched=True),
    )
    return _lift(layout, block, approach=approach, away=Waypoint((0.0, 0.0, 0.14), closed=True, tolerance_m=0.02))


def _lift_from_slider(layout: TableLayout, block: str) -> Script:
    # In from the front and out the same way: the roof of the cabinet hangs over its rear half.
    approach = (
        Waypoint((0.0, -0.09, 0.13), closed=False, tolerance_m=0.03, jitter=1.0, watched=True),
        Waypoint((0.0, -0.015, 0.05), closed=False, tolerance_m=0.022, watched=True),
    )
    return _lift(layout, block, approach=approach, away=Waypoint((0.0, -0.08, 0.12), closed=True, tolerance_m=0.02))


def _push(layout: TableLayout, block: str, *, to_left: bool) -> Script:
    # Closed fingers come down beside the block and shove it from its far side.
    sign = -1.0 if to_left else 1.0
    beside_m = -sign * (0.5 * layout.block_lengths_m[block] + 0.05)
    place = block_slice(layout, block).start
    return Script(
        anchor=lambda scene: Anchor(scene[place : place + 3].copy()),
        waypoints=(
            Waypoint((beside_m, 0.0, 0.09), closed=True, tolerance_m=0.03, jitter=1.0, watched=True),
            Waypoint((beside_m, 0.0, 0.006), closed=True, tolerance_m=0.012, watched=True),
            Waypoint((0.12 * sign, 0.0, 0.006), closed=True, tolerance_m=0.012),
        ),
        goal=lambda start, now: bool(sign * (now[place] - start[place]) > 0.105),
        grasp_jitter_m=(0.004, 0.004, 0.003),
        approach_jitter_m=(0.01, 0.01, 0.02),
    )


def _pusher(block: str, *, to_left: bool) -> Callable[[TableLayout], Script]:
    return lambda layout: _push(layout, block, to_left=to_left)


def _rotate(layout: TableLayout, block: str, *, to_left: bool) -> Script:
    # Gripped where it stands and turned without being lifted.
    turn_rad = math.radians(72.0) * (1.0 if to_left else -1.0)
    place = block_slice(layout, block).start
    return Script(
        anchor=_block(layout, block),
        waypoints=(
            Waypoint((0.0, 0.0, 0.075), closed=False, tolerance_m=0.03, jitter=1.0, towards_base_m=0.05, watched=True),
            Waypoint((0.0, 0.0, 0.045), closed=False, tolerance_m=0.022, watched=True),
            Waypoint((0.0, 0.0, 0.004), closed=False, tolerance_m=0.008, watched=True),
            Waypoint((0.0, 0.0, 0.004), closed=True, tolerance_m=0.02, dwell_steps=2),
            Waypoint((0.0, 0.0, 0.004), closed=True, tolerance_m=0.03, turn_rad=turn_rad),
            Waypoint((0.0, 0.0, 0.004), closed=False, tolerance_m=0.03, dwell_steps=2, turn_rad=None),
            Waypoint((0.0, 0.0, 0.06), closed=False, tolerance_m=0.03, turn_rad=None),
        ),
        goal=lambda start, now: bool(np.sign(turn_rad) * wrap_angle(now[place + 5] - start[place + 5]) > math.radians(62.0)),
        grasp_jitter_m=(0.003, 0.003, 0.002),
        approach_jitter_m=(0.005, 0.005, 0.02),
    )


def _rotator(block: str, *, to_left: bool) -> Callable[[TableLayout], Script]:
    return lambda layout: _rotate(layout, block, to_left=to_left)


_LIFTS: Final = {"table": _lift_from_table, "slider": _lift_from_slider, "drawer": _lift_from_drawer}


def _lifter(block: str, place: str) -> Callable[[TableLayout], Script]:
    return lambda layout: _LIFTS[place](layout, block)


_SCRIPTS: Final[dict[str, Callable[[TableLayout], Script]]] = {
    **{
        f"rotate_{colour}_block_{side}": _rotator(f"block_{colour}", to_left=side == "left")
        for colour in COLOURS
        for side in ("right", "left")
    },
    **{
        f"push_{colour}_block_{side}": _pusher(f"block_{colour}", to_left=side == "left")
        for colour in COLOURS
        for side in ("right", "left")
    },
    "move_slider_left": lambda layout: _move_slider(layout, to_left=True),
    "move_slider_right": lambda layout: _move_slider(layout, to_left=False),
    "open_drawer": _open_drawer,
    "close_drawer": _close_drawer,
    **{f"lift_{colour}_block_{place}": _lifter(f"block_{colour}", place) for colour in COLOURS for place in _LIFTS},
    "turn_on_lightbulb": _turn_on_lightbulb,
    "turn_off_lightbulb": _turn_off_lightbulb,
    "turn_on_led": _press_button,
    "turn_off_led": _press_button,
}
EXPERT_TASKS: Final = tuple(_SCRIPTS)


def make_expert(task: str, scene: str, rng: np.random.Generator) -> Expert:
    """Make the expert of `task` in `scene`; `rng` decides its speed, approach height and grasp offset.

    Raises:
        ConfigError: the task or the scene is unknown, or no expert exists for the task.
    """
    check_task(task)
    if task not in _SCRIPTS:
        remedy = "Record one of these tasks."
        raise ConfigError(explain("expert", got=repr(task), expected=did_you_mean(task, EXPERT_TASKS), remedy=remedy))
    return WaypointExpert(_SCRIPTS[task](find_layout(scene)), rng)
