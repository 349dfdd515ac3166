"""Scripts for what is fixed to the table: drawer, sliding door, switch and button."""

from __future__ import annotations

import math

import numpy as np

from rfedge.envs.experts.script import DRAWER, SLIDE, Anchor, AnchorFinder, Script, Waypoint
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import FACE_TILT_RAD, TableLayout

_SWITCH, _BULB, _LED = 3, 4, 5  # places in scene_obs


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


def drawer_waypoints(layout: TableLayout, *, travel_m: float = 0.19) -> tuple[Waypoint, ...]:
    """Return the way that opens the drawer: drop into the gap between the handle's bar and the drawer's front, and pull."""
    handle = drawer_handle(layout)
    return (
        Waypoint(handle, (0.0, 0.04, 0.13), closed=True, tolerance_m=0.035, jitter=1.0),
        Waypoint(handle, (0.0, 0.04, 0.10), closed=True, tolerance_m=0.018),
        Waypoint(handle, (0.0, 0.04, 0.015), closed=True, tolerance_m=0.012),
        Waypoint(handle, (0.0, 0.04 - travel_m, 0.015), closed=True, tolerance_m=0.012),
    )


def open_drawer(layout: TableLayout) -> Script:
    waypoints = drawer_waypoints(layout)
    return Script(
        plan=lambda _: waypoints,
        goal=lambda start, now: bool(now[DRAWER] - start[DRAWER] > 0.125),
        grasp_jitter_m=(0.06, 0.002, 0.004),
        approach_jitter_m=(0.02, 0.0, 0.03),
    )


def close_drawer(layout: TableLayout) -> Script:
    handle = drawer_handle(layout)
    waypoints = (
        Waypoint(handle, (0.0, -0.07, 0.11), closed=True, tolerance_m=0.035, jitter=1.0),
        Waypoint(handle, (0.0, -0.06, 0.005), closed=True, tolerance_m=0.025),
        Waypoint(handle, (0.0, 0.17, 0.005), closed=True, tolerance_m=0.012),
    )
    return Script(
        plan=lambda _: waypoints,
        goal=lambda start, now: bool(start[DRAWER] - now[DRAWER] > 0.125),
        grasp_jitter_m=(0.06, 0.0, 0.006),
        approach_jitter_m=(0.02, 0.02, 0.02),
    )


def door_waypoints(layout: TableLayout, *, to_left: bool, travel_m: float = 0.24) -> tuple[Waypoint, ...]:
    """Return the way that drags the sliding door: open fingers on both sides of its handle, whichever the direction."""
    handle, sign = slide_handle(layout), 1.0 if to_left else -1.0
    return (
        Waypoint(handle, (0.0, -0.05, 0.10), closed=False, tolerance_m=0.03, jitter=1.0),
        Waypoint(handle, (0.0, -0.012, 0.01), closed=False, tolerance_m=0.012),
        Waypoint(handle, (-travel_m * sign, -0.012, 0.01), closed=False, tolerance_m=0.012),
    )


def move_slider(layout: TableLayout, *, side: str) -> Script:
    sign = 1.0 if side == "left" else -1.0
    waypoints = door_waypoints(layout, to_left=side == "left")
    return Script(
        plan=lambda _: waypoints,
        goal=lambda start, now: bool(sign * (now[SLIDE] - start[SLIDE]) > 0.155),
        grasp_jitter_m=(0.01, 0.006, 0.006),
        approach_jitter_m=(0.01, 0.02, 0.02),
    )


def turn_on_lightbulb(layout: TableLayout) -> Script:
    """Push the lever from below and in front, so that it climbs its tilted slot.

    The gripper is tilted: straight down the arm does not reach that far.
    """
    tip = switch_tip(layout)
    waypoints = (
        Waypoint(tip, (0.0, -0.06, -0.01), closed=True, tolerance_m=0.025, jitter=1.0, tilt_rad=0.5),
        Waypoint(tip, (0.0, -0.012, -0.02), closed=True, tolerance_m=0.012, tilt_rad=0.5),
        Waypoint(tip, (0.0, 0.05, 0.088), closed=True, tolerance_m=0.015, tilt_rad=0.5),
    )
    return Script(
        plan=lambda _: waypoints,
        goal=lambda start, now: bool(now[_BULB] > 0.5),
        grasp_jitter_m=(0.03, 0.0, 0.006),
        approach_jitter_m=(0.01, 0.02, 0.01),
    )


def turn_off_lightbulb(layout: TableLayout) -> Script:
    """Come down on top of the lever with tilted fingers and press it back along its slot."""
    tip = switch_tip(layout)
    waypoints = (
        Waypoint(tip, (0.0, -0.05, 0.10), closed=True, tolerance_m=0.03, jitter=1.0, tilt_rad=0.5),
        Waypoint(tip, (0.0, 0.02, 0.05), closed=True, tolerance_m=0.02, tilt_rad=0.5),
        Waypoint(tip, (0.0, -0.03, -0.055), closed=True, tolerance_m=0.015, tilt_rad=0.5),
    )
    return Script(
        plan=lambda _: waypoints,
        goal=lambda start, now: bool(now[_BULB] < 0.5),
        grasp_jitter_m=(0.03, 0.0, 0.0),
        approach_jitter_m=(0.01, 0.01, 0.01),
    )


def press_button(layout: TableLayout) -> Script:
    button = button_top(layout)
    waypoints = (
        Waypoint(button, (0.0, 0.0, 0.07), closed=True, tolerance_m=0.025, jitter=1.0),
        Waypoint(button, (0.0, 0.0, -0.002), closed=True, tolerance_m=0.008),
        Waypoint(button, (0.0, 0.0, 0.07), closed=True, tolerance_m=0.03),
    )
    return Script(
        plan=lambda _: waypoints,
        goal=lambda start, now: bool(now[_LED] != start[_LED]),
        grasp_jitter_m=(0.015, 0.015, 0.0),
    )
