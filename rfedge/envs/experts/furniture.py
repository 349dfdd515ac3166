"""Scripts for what is fixed to the table: drawer, sliding door, switch and button.

furniture.json has their waypoints, from where a handle, the tip of the switch or the top of the button is. The drawer opens
by dropping into the gap between the bar of its handle and its front; open fingers stand on both sides of the door's handle;
the gripper is tilted at the switch, because straight down the arm does not reach that far.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from rfedge.envs.experts.script import DRAWER, SLIDE, Anchor, AnchorFinder, Script, Waypoint
from rfedge.envs.interface import Float64Array
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import FACE_TILT_RAD, TableLayout

_SWITCH, _BULB, _LED = 3, 4, 5  # places in scene_obs
_SCRIPTS: Final[dict[str, dict[str, Any]]] = json.loads(Path(__file__).with_suffix(".json").read_text())


def drawer_handle(layout: TableLayout) -> AnchorFinder:
    """Return where the drawer's handle is, which moves with the drawer."""
    y_m, z_m = dimensions.DRAWER_HANDLE_YZ_M
    return lambda scene: Anchor(np.array([layout.drawer_x_m, y_m - scene[DRAWER], z_m]))


def slide_handle(layout: TableLayout) -> AnchorFinder:
    """Return where the sliding door's handle is, which moves with the door."""
    return lambda scene: Anchor(np.array([layout.slide_handle_x_m - scene[SLIDE], *dimensions.SLIDE_HANDLE_YZ_M]))


def switch_tip(layout: TableLayout) -> AnchorFinder:
    """Return where the end of the switch's lever is, which runs up the cabinet's face."""
    y_m, z_m = dimensions.SWITCH_TIP_YZ_M
    cos, sin = math.cos(FACE_TILT_RAD), math.sin(FACE_TILT_RAD)
    return lambda scene: Anchor(np.array([layout.switch_x_m, y_m + cos * scene[_SWITCH], z_m + sin * scene[_SWITCH]]))


def button_top(layout: TableLayout) -> AnchorFinder:
    """Return where a finger meets the button."""
    return lambda scene: Anchor(np.array([*layout.button_xy_m, dimensions.BUTTON_TOP_M]))


_ANCHORS: Final = {"drawer": drawer_handle, "slide": slide_handle, "switch": switch_tip, "button": button_top}


def waypoints(layout: TableLayout, task: str) -> tuple[Waypoint, ...]:
    anchor = _ANCHORS[_SCRIPTS[task]["at"]](layout)
    return tuple(
        Waypoint(anchor, **{**fields, "offset_m": tuple(fields["offset_m"])}) for fields in _SCRIPTS[task]["waypoints"]
    )


def drawer_waypoints(layout: TableLayout, *, travel_m: float) -> tuple[Waypoint, ...]:
    """Return the way that opens the drawer by `travel_m`."""
    *before, pull = waypoints(layout, "open_drawer")
    return (*before, replace(pull, offset_m=(0.0, 0.04 - travel_m, 0.015)))


def door_waypoints(layout: TableLayout, *, to_left: bool, travel_m: float) -> tuple[Waypoint, ...]:
    """Return the way that drags the sliding door by `travel_m`."""
    *before, drag = waypoints(layout, "move_slider_left" if to_left else "move_slider_right")
    return (*before, replace(drag, offset_m=(-travel_m if to_left else travel_m, -0.012, 0.01)))


# task -> whether it is done, from scene_obs when it began and now
_GOALS: Final[dict[str, Callable[[Float64Array, Float64Array], bool]]] = {
    "open_drawer": lambda start, now: now[DRAWER] - start[DRAWER] > 0.125,
    "close_drawer": lambda start, now: start[DRAWER] - now[DRAWER] > 0.125,
    "move_slider_left": lambda start, now: now[SLIDE] - start[SLIDE] > 0.155,
    "move_slider_right": lambda start, now: start[SLIDE] - now[SLIDE] > 0.155,
    "turn_on_lightbulb": lambda _, now: now[_BULB] > 0.5,
    "turn_off_lightbulb": lambda _, now: now[_BULB] < 0.5,
    "turn_on_led": lambda start, now: now[_LED] != start[_LED],
    "turn_off_led": lambda start, now: now[_LED] != start[_LED],
}
FURNITURE_TASKS: Final = tuple(_GOALS)


def furniture_script(layout: TableLayout, task: str) -> Script:
    way = waypoints(layout, task)
    jitter: dict[str, Any] = {name: tuple(_SCRIPTS[task][name]) for name in ("grasp_jitter_m", "approach_jitter_m")}
    return Script(plan=lambda _: way, goal=lambda start, now: bool(_GOALS[task](start, now)), **jitter)
