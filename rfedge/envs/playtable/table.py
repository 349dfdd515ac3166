"""Adds the table to the model: slab, cabinet, sliding door, drawer, switch, button, lights and the three blocks.

Bodies are named "owner/link" so that a contact can be reported as (owner, link) without another table.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Final

from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import SLOPE, TableLayout

__all__ = ["add_blocks", "add_table", "add_table_meshes", "box", "numbers"]

# Collision classes: table parts never touch each other, the arm never touches itself, everything else does.
TABLE_CLASS: Final = {"contype": "1", "conaffinity": "0"}
BLOCK_CLASS: Final = {"contype": "2", "conaffinity": "7"}
ROBOT_CLASS: Final = {"contype": "4", "conaffinity": "3"}
VISUAL_CLASS: Final = {"contype": "0", "conaffinity": "0"}

BLOCK_RGBA: Final = {"block_red": "0.9 0.05 0.05 1", "block_blue": "0.05 0.1 0.9 1", "block_pink": "0.95 0.1 0.9 1"}
_HANDLE_RGBA: Final = "0.2 0.2 0.22 1"
_DOOR_RGBA: Final = "0.72 0.66 0.58 1"
_SWITCH_RGBA: Final = "0.15 0.5 0.25 1"
_SLOT_RGBA: Final = "0.08 0.07 0.06 1"
_BUTTON_RGBA: Final = "0.95 0.6 0.1 1"
_BUTTON_SPRING_N_M: Final = dimensions.BRAKE_N / dimensions.BUTTON_MAX_M
_FACE_EULER: Final = f"{SLOPE.tilt_rad!r} 0 0"


def numbers(values: Sequence[float]) -> str:
    """Write numbers as an MJCF attribute, without losing digits."""
    return " ".join(repr(float(value)) for value in values)


def box(parent: ET.Element, lower: Sequence[float], upper: Sequence[float], **attributes: str) -> ET.Element:
    """Add an axis-aligned box between two corners, in the frame of `parent`."""
    centre = [0.5 * (a + b) for a, b in zip(lower, upper, strict=True)]
    half = [0.5 * (b - a) for a, b in zip(lower, upper, strict=True)]
    return ET.SubElement(parent, "geom", {"type": "box", "pos": numbers(centre), "size": numbers(half), **attributes})


def _face_box(
    parent: ET.Element,
    x_m: tuple[float, float],
    along_m: tuple[float, float],
    out_m: tuple[float, float],
    **attributes: str,
) -> ET.Element:
    """Add a box whose sides follow the tilted cabinet face."""
    y_m, z_m = SLOPE.point(0.5 * sum(along_m), 0.5 * sum(out_m))
    half = [0.5 * (high - low) for low, high in (x_m, along_m, out_m)]
    centre = (0.5 * sum(x_m), y_m, z_m)
    place = {"pos": numbers(centre), "size": numbers(half), "euler": _FACE_EULER}
    return ET.SubElement(parent, "geom", {"type": "box", **place, **attributes})


def _link(world: ET.Element, name: str, axis: Sequence[float], range_m: float, mass_kg: float, **joint: str) -> ET.Element:
    """Add a body that slides along one axis; gravity is compensated so that only brake or spring hold it."""
    body = ET.SubElement(world, "body", {"name": f"table/{name}_link", "gravcomp": "1"})
    ET.SubElement(body, "inertial", {"pos": "0 0 0", "mass": repr(mass_kg), "diaginertia": "0.01 0.01 0.01"})
    slide = {"name": f"base__{name}", "type": "slide", "axis": numbers(axis), "range": numbers((0.0, range_m))}
    ET.SubElement(body, "joint", {**slide, **joint})
    return body


def add_table_meshes(asset: ET.Element, layout: TableLayout) -> None:
    """Add the two solid wedges beside the open cabinet, and the material of the wood."""
    red, green, blue = layout.wood_rgb
    ET.SubElement(asset, "material", {"name": "wood", "rgba": numbers((red, green, blue, 1.0)), "specular": "0.1"})
    darker = [0.8 * value for value in layout.wood_rgb]
    ET.SubElement(asset, "material", {"name": "dark", "rgba": numbers((*darker, 1.0)), "specular": "0.1"})
    lighter = [min(1.0, 1.25 * value) for value in layout.wood_rgb]
    ET.SubElement(asset, "material", {"name": "light", "rgba": numbers((*lighter, 1.0)), "specular": "0.1"})
    half_x, back = dimensions.TABLE_HALF_X_M, dimensions.TABLE_HALF_Y_M
    top_y, top_z = SLOPE.point(SLOPE.length_m, 0.0)
    outline = ((SLOPE.foot_y_m, SLOPE.foot_z_m), (top_y, top_z), (back, top_z), (back, SLOPE.foot_z_m))
    for side, (low, high) in (
        ("left", (-half_x, layout.opening_x_m[0])),
        ("right", (layout.opening_x_m[1], half_x)),
    ):
        corners = [coordinate for x in (low, high) for y, z in outline for coordinate in (x, y, z)]
        ET.SubElement(asset, "mesh", {"name": f"wedge_{side}", "vertex": numbers(corners)})


def add_table(world: ET.Element, layout: TableLayout) -> None:
    """Add the fixed table and everything that moves on it."""
    _add_base(world, layout)
    _add_drawer(world, layout)
    _add_slide(world, layout)
    _add_switch(world, layout)
    _add_button(world, layout)


def _add_base(world: ET.Element, layout: TableLayout) -> None:
    half_x, half_y = dimensions.TABLE_HALF_X_M, dimensions.TABLE_HALF_Y_M
    top = dimensions.TABLE_TOP_M
    under = top - dimensions.TABLE_SLAB_M
    solid = {**TABLE_CLASS, "material": "wood"}
    dark = {**TABLE_CLASS, "material": "dark"}
    base = ET.SubElement(world, "body", {"name": "table/base_link"})
    box(base, (-half_x, -half_y, under), (half_x, half_y, top), **solid)
    # Under the slab: two side cabinets, a rear wall and a floor leave the hollow that the drawer runs in.
    drawer_low, drawer_high = layout.drawer_x_m - 0.225, layout.drawer_x_m + 0.225
    box(base, (-half_x, -half_y, 0.285), (drawer_low, half_y, under), **dark)
    box(base, (drawer_high, -half_y, 0.285), (half_x, half_y, under), **dark)
    box(base, (drawer_low, 0.07, 0.285), (drawer_high, half_y, under), **dark)
    box(base, (-half_x, -half_y, 0.27), (half_x, half_y, 0.285), **dark)
    for x_m in (-half_x + 0.03, half_x - 0.03):
        box(base, (x_m - 0.025, -half_y + 0.01, 0.0), (x_m + 0.025, half_y - 0.01, 0.27), **dark)
    # Above it: the wedges, and a rear wall. The cabinet has no roof: the hand reaches in from above.
    for side in ("left", "right"):
        ET.SubElement(base, "geom", {"type": "mesh", "mesh": f"wedge_{side}", **solid})
    low, high = layout.opening_x_m
    box(base, (low, dimensions.REAR_WALL_Y_M, top), (high, half_y, dimensions.CABINET_TOP_M), **dark)
    plank = ET.SubElement(world, "body", {"name": "table/plank_link"})
    shelf = dimensions.PLANK_TOP_M
    low, high = layout.cabinet_x_m
    box(plank, (low, 0.02, shelf - 0.005), (high, dimensions.REAR_WALL_Y_M, shelf), **TABLE_CLASS, material="light")
    light_y = dimensions.LIGHT_Y_M
    for link, name, x_m, z_m in (
        ("light", "lightbulb", layout.bulb_x_m, dimensions.BULB_Z_M),
        ("led", "led", layout.led_x_m, dimensions.LED_Z_M),
    ):
        body = ET.SubElement(world, "body", {"name": f"table/{link}_link", "pos": numbers((x_m, light_y, z_m))})
        shape = {"type": "sphere", "size": "0.022"} if name == "lightbulb" else {"type": "box", "size": "0.03 0.018 0.014"}
        ET.SubElement(body, "geom", {"name": name, **shape, **TABLE_CLASS, "rgba": "1 1 1 1"})


def _add_drawer(world: ET.Element, layout: TableLayout) -> None:
    drawer = _link(world, "drawer", (0, -1, 0), dimensions.DRAWER_MAX_M, 0.5, frictionloss=repr(dimensions.BRAKE_N))
    solid = {**TABLE_CLASS, "material": "light"}
    low, high = layout.drawer_x_m - 0.22, layout.drawer_x_m + 0.22
    wall, inner = dimensions.DRAWER_WALL_M, dimensions.DRAWER_INNER_HALF_X_M
    left, right = layout.drawer_x_m - inner, layout.drawer_x_m + inner
    front, rear, floor, rim = -0.18, 0.06, dimensions.DRAWER_BOTTOM_M, 0.40
    box(drawer, (low, front, floor), (high, rear, dimensions.DRAWER_FLOOR_M), **solid)
    box(drawer, (low, front, floor), (high, front + wall, rim), **solid)
    box(drawer, (low, rear - wall, floor), (high, rear, rim), **solid)
    box(drawer, (low, front, floor), (left, rear, rim), **solid)
    box(drawer, (right, front, floor), (high, rear, rim), **solid)
    handle = {**TABLE_CLASS, "rgba": _HANDLE_RGBA}
    y_m, z_m = dimensions.DRAWER_HANDLE_YZ_M
    reach = dimensions.DRAWER_HANDLE_HALF_X_M
    centre = layout.drawer_x_m
    lower, upper = (centre - reach, y_m - 0.0125, z_m - 0.02), (centre + reach, y_m + 0.0125, z_m + 0.02)
    box(drawer, lower, upper, name="drawer_handle", **handle)
    for x_m in (centre - reach + 0.01, centre + reach - 0.01):
        box(drawer, (x_m - 0.01, y_m, z_m - 0.012), (x_m + 0.01, front, z_m + 0.012), **handle)


def _add_slide(world: ET.Element, layout: TableLayout) -> None:
    slide = _link(world, "slide", (-1, 0, 0), layout.slide_max_m, 0.5, frictionloss=repr(dimensions.BRAKE_N))
    _face_box(slide, layout.door_x_m, (0.004, SLOPE.length_m), (0.003, 0.011), **TABLE_CLASS, rgba=_DOOR_RGBA)
    along, out = SLOPE.coordinates(*dimensions.SLIDE_HANDLE_YZ_M)
    x_m = layout.slide_handle_x_m
    # One solid fin: fingers on both sides of it cannot be caught behind it.
    handle = {**TABLE_CLASS, "name": "slide_handle", "rgba": _HANDLE_RGBA}
    _face_box(slide, (x_m - 0.01, x_m + 0.01), (along - 0.045, along + 0.045), (0.011, out + 0.012), **handle)


def _add_switch(world: ET.Element, layout: TableLayout) -> None:
    axis = (0.0, math.cos(SLOPE.tilt_rad), math.sin(SLOPE.tilt_rad))
    switch = _link(world, "switch", axis, dimensions.SWITCH_MAX_M, 0.2, frictionloss=repr(dimensions.BRAKE_N))
    along, out = SLOPE.coordinates(*dimensions.SWITCH_TIP_YZ_M)
    x_m = layout.switch_x_m
    lever = {**TABLE_CLASS, "rgba": _SWITCH_RGBA}
    thick = (along - 0.012, along + 0.012)
    _face_box(switch, (x_m - 0.06, x_m + 0.06), thick, (out - 0.014, out), name="switch_lever", **lever)
    _face_box(switch, (x_m - 0.015, x_m + 0.015), thick, (0.003, out - 0.014), **lever)
    slot = ET.SubElement(world, "body", {"name": "table/switch_slot"})
    travel = (along - 0.014, along + dimensions.SWITCH_MAX_M + 0.014)
    _face_box(slot, (x_m - 0.02, x_m + 0.02), travel, (-0.002, 0.002), **VISUAL_CLASS, rgba=_SLOT_RGBA)


def _add_button(world: ET.Element, layout: TableLayout) -> None:
    spring = {"stiffness": repr(_BUTTON_SPRING_N_M), "damping": "4"}
    button = _link(world, "button", (0, 0, -1), dimensions.BUTTON_MAX_M, 0.1, **spring)
    x_m, y_m = layout.button_xy_m
    top = dimensions.BUTTON_TOP_M
    cap = {**TABLE_CLASS, "name": "button_cap", "rgba": _BUTTON_RGBA}
    box(button, (x_m - 0.035, y_m - 0.035, 0.45), (x_m + 0.035, y_m + 0.035, top), **cap)
    frame = ET.SubElement(world, "body", {"name": "table/button_frame"})
    box(frame, (x_m - 0.043, y_m - 0.043, 0.44), (x_m + 0.043, y_m + 0.043, 0.447), **VISUAL_CLASS, rgba=_SLOT_RGBA)


def add_blocks(world: ET.Element, layout: TableLayout) -> None:
    """Add the three free blocks, each 1 kg, with its long side along its own x axis."""
    half_width = 0.5 * dimensions.BLOCK_WIDTH_M
    for name, length_m in layout.block_lengths_m.items():
        body = ET.SubElement(world, "body", {"name": f"{name}/base_link", "pos": "0 0 1"})
        ET.SubElement(body, "freejoint", {"name": name})
        size = numbers((0.5 * length_m, half_width, half_width))
        look = {"rgba": BLOCK_RGBA[name], "mass": "1", "condim": "4"}
        ET.SubElement(body, "geom", {"type": "box", "size": size, **look, **BLOCK_CLASS})
