"""Adds the table, and what the cameras see of it: slab, cabinet, sliding door, drawer, switch, button, lights and blocks.

Physics collides boxes; drawn are wood with its grain, in CALVIN's dimensions, without mass and contacts; lights are both.
Bodies are named "owner/link" so that a contact can be reported as (owner, link) without another table.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Final

import numpy as np

from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import FACE_TILT_RAD, TableLayout, face_point
from rfedge.envs.playtable.surfaces import VISUAL, Surface, numbers
from rfedge.envs.playtable.wood import TEXTURE_SIZE

# Collision classes: table parts never touch each other, the arm never touches itself, everything else does.
# MuJoCo draws groups 0 to 2 and not group 3.
TABLE_CLASS: Final = {"contype": "1", "conaffinity": "0", "group": "3"}
BLOCK_CLASS: Final = {"contype": "2", "conaffinity": "7", "group": "3"}
ROBOT_CLASS: Final = {"contype": "4", "conaffinity": "3", "group": "3"}

_BUTTON_SPRING_N_M: Final = dimensions.BRAKE_N / dimensions.BUTTON_MAX_M
_FACE_EULER: Final = f"{FACE_TILT_RAD!r} 0 0"
_CORNERS: Final = 12  # of the rim around the button
_FLOOR_M: Final = 6.0
_FLOOR_PIXELS: Final = 64


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
    y_m, z_m = face_point(0.5 * sum(along_m), 0.5 * sum(out_m))
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
    """Add the two solid wedges beside the open cabinet."""
    half_x, back = dimensions.TABLE_HALF_X_M, dimensions.TABLE_HALF_Y_M
    top_y, top_z = face_point(dimensions.FACE_LENGTH_M, 0.0)
    outline = (dimensions.FACE_FOOT_YZ_M, (top_y, top_z), (back, top_z), (back, dimensions.FACE_FOOT_YZ_M[1]))
    for side, (low, high) in (
        ("left", (-half_x, layout.cabinet_x_m[0])),
        ("right", (layout.cabinet_x_m[1], half_x)),
    ):
        corners = [coordinate for x in (low, high) for y, z in outline for coordinate in (x, y, z)]
        ET.SubElement(asset, "mesh", {"name": f"wedge_{side}", "vertex": numbers(corners)})


def add_table(world: ET.Element, layout: TableLayout) -> None:
    base = _add_base(world, layout)
    _add_drawer(world, layout)
    _add_slide(world, layout)
    _add_switch(world, base, layout)
    _add_button(world, layout)


def _draw_mesh(body: ET.Element, mesh: str, material: str) -> None:
    ET.SubElement(body, "geom", {"name": mesh, "type": "mesh", "mesh": mesh, "material": material, **VISUAL})


def _add_base(world: ET.Element, layout: TableLayout) -> ET.Element:
    half_x, half_y = dimensions.TABLE_HALF_X_M, dimensions.TABLE_HALF_Y_M
    top = dimensions.TABLE_TOP_M
    under = top - dimensions.TABLE_SLAB_M
    solid = TABLE_CLASS
    base = ET.SubElement(world, "body", {"name": "table/base_link"})
    box(base, (-half_x, -half_y, under), (half_x, half_y, top), **solid)
    # Under the slab: two side cabinets, a rear wall and a floor leave the hollow that the drawer runs in.
    drawer_low, drawer_high = layout.drawer_x_m - 0.225, layout.drawer_x_m + 0.225
    box(base, (-half_x, -half_y, 0.285), (drawer_low, half_y, under), **solid)
    box(base, (drawer_high, -half_y, 0.285), (half_x, half_y, under), **solid)
    box(base, (drawer_low, 0.07, 0.285), (drawer_high, half_y, under), **solid)
    box(base, (-half_x, -half_y, 0.27), (half_x, half_y, 0.285), **solid)
    for x_m in (-half_x + 0.03, half_x - 0.03):
        box(base, (x_m - 0.025, -half_y + 0.01, 0.0), (x_m + 0.025, half_y - 0.01, 0.27), **solid)
    # Above it: the wedges, a rear wall, and a beam that covers the rear of the cabinet: the hand reaches in before it.
    for side in ("left", "right"):
        ET.SubElement(base, "geom", {"type": "mesh", "mesh": f"wedge_{side}", **solid})
    low, high = layout.cabinet_x_m
    box(base, (low, dimensions.REAR_WALL_Y_M, top), (high, half_y, dimensions.CABINET_TOP_M), **solid)
    beam = dimensions.BEAM_YZ_M
    box(base, (low, *beam), (high, half_y, dimensions.CABINET_TOP_M), **solid)
    x_m, y_m = layout.button_xy_m
    rim = {"pos": numbers((x_m, y_m, 0.5 * (top + dimensions.BUTTON_FOOT_M)))}
    rim |= {"size": numbers((dimensions.BUTTON_RIM_M, 0.5 * (dimensions.BUTTON_FOOT_M - top)))}
    ET.SubElement(base, "geom", {"name": "button_rim", "type": "cylinder", **rim, **solid})
    plank = ET.SubElement(world, "body", {"name": "table/plank_link"})
    shelf = dimensions.PLANK_TOP_M
    low, high = layout.cabinet_x_m
    box(plank, (low, 0.02, shelf - 0.005), (high, dimensions.REAR_WALL_Y_M, shelf), **TABLE_CLASS)
    light_y = dimensions.LIGHT_Y_M
    ball = {"type": "sphere", "size": repr(dimensions.BULB_RADIUS_M)}
    slab = {"type": "box", "size": numbers(dimensions.LED_HALF_SIZE_M)}
    for link, name, x_m, z_m, shape in (
        ("light", "lightbulb", layout.bulb_x_m, dimensions.BULB_Z_M, ball),
        ("led", "led", layout.led_x_m, dimensions.LED_Z_M, slab),
    ):
        body = ET.SubElement(world, "body", {"name": f"table/{link}_link", "pos": numbers((x_m, light_y, z_m))})
        ET.SubElement(body, "geom", {"name": name, **shape, **TABLE_CLASS, "group": "1", "rgba": "1 1 1 1"})
    _draw_mesh(base, "table_drawn", "wood")
    return base


def _add_drawer(world: ET.Element, layout: TableLayout) -> None:
    drawer = _link(world, "drawer", (0, -1, 0), dimensions.DRAWER_MAX_M, 0.5, frictionloss=repr(dimensions.BRAKE_N))
    low, high = layout.drawer_x_m - 0.22, layout.drawer_x_m + 0.22
    wall, inner = dimensions.DRAWER_WALL_M, dimensions.DRAWER_INNER_HALF_X_M
    left, right = layout.drawer_x_m - inner, layout.drawer_x_m + inner
    front, rear, floor, rim = -0.18, 0.06, dimensions.DRAWER_BOTTOM_M, 0.40
    box(drawer, (low, front, floor), (high, rear, dimensions.DRAWER_FLOOR_M), **TABLE_CLASS)
    box(drawer, (low, front, floor), (high, front + wall, rim), **TABLE_CLASS)
    box(drawer, (low, rear - wall, floor), (high, rear, rim), **TABLE_CLASS)
    box(drawer, (low, front, floor), (left, rear, rim), **TABLE_CLASS)
    box(drawer, (right, front, floor), (high, rear, rim), **TABLE_CLASS)
    y_m, z_m = dimensions.DRAWER_HANDLE_YZ_M
    reach = dimensions.DRAWER_HANDLE_HALF_X_M
    centre = layout.drawer_x_m
    lower, upper = (centre - reach, y_m - 0.0125, z_m - 0.02), (centre + reach, y_m + 0.0125, z_m + 0.02)
    box(drawer, lower, upper, name="drawer_handle", **TABLE_CLASS)
    for x_m in (centre - reach + 0.01, centre + reach - 0.01):
        box(drawer, (x_m - 0.01, y_m, z_m - 0.02), (x_m + 0.01, front, z_m + 0.02), **TABLE_CLASS)
    _draw_mesh(drawer, "drawer_drawn", "panel")
    _bar(drawer, (centre - 0.12, -0.26, 0.34), (centre + 0.12, -0.24, 0.38), "handle")
    for x_m in (-0.12, 0.1):
        _bar(drawer, (centre + x_m, -0.24, 0.34), (centre + x_m + 0.02, -0.18, 0.38), "handle")


def _add_slide(world: ET.Element, layout: TableLayout) -> None:
    slide = _link(world, "slide", (-1, 0, 0), layout.slide_max_m, 0.5, frictionloss=repr(dimensions.BRAKE_N))
    _face_box(slide, layout.door_x_m, (0.0, 0.23), (-0.001, 0.022), **TABLE_CLASS)
    x_m = layout.slide_handle_x_m
    # A bar on two feet, as wide as CALVIN's is with the margin of its collision shape.
    width = (x_m - 0.0218, x_m + 0.0218)
    _face_box(slide, width, (0.029, 0.192), (0.057, 0.081), name="slide_handle", **TABLE_CLASS)
    for low, high in ((0.029, 0.053), (0.166, 0.192)):
        _face_box(slide, width, (low, high), (0.022, 0.057), **TABLE_CLASS)
    _draw_mesh(slide, "door_drawn", "panel")
    _bar(slide, (x_m - 0.02, 0.03, 0.06), (x_m + 0.02, 0.19, 0.08), "handle", on_slope=True)
    for low in (0.03, 0.17):
        _bar(slide, (x_m - 0.02, low, 0.02), (x_m + 0.02, low + 0.02, 0.06), "handle", on_slope=True)


def _add_switch(world: ET.Element, base: ET.Element, layout: TableLayout) -> None:
    axis = (0.0, math.cos(FACE_TILT_RAD), math.sin(FACE_TILT_RAD))
    switch = _link(world, "switch", axis, dimensions.SWITCH_MAX_M, 0.2, frictionloss=repr(dimensions.BRAKE_N))
    x_m, thick = layout.switch_x_m, dimensions.SWITCH_ALONG_M
    _face_box(switch, (x_m - 0.061, x_m + 0.061), thick, (0.035, 0.0573), name="switch_lever", **TABLE_CLASS)
    for low in (-0.061, 0.039):
        _face_box(switch, (x_m + low, x_m + low + 0.022), thick, (0.003, 0.035), **TABLE_CLASS)
    _bar(switch, (x_m - 0.06, 0.06, 0.036), (x_m + 0.06, 0.092, 0.056), "switch", on_slope=True)
    for low in (-0.06, 0.04):
        _bar(switch, (x_m + low, 0.06, 0.0), (x_m + low + 0.02, 0.092, 0.036), "switch", on_slope=True)
        _bar(base, (x_m + low, 0.06, -0.001), (x_m + low + 0.02, 0.18, 0.0005), "slot", on_slope=True)


def _add_button(world: ET.Element, layout: TableLayout) -> None:
    spring = {"stiffness": repr(_BUTTON_SPRING_N_M), "damping": "4"}
    button = _link(world, "button", (0, 0, -1), dimensions.BUTTON_MAX_M, 0.1, **spring)
    x_m, y_m = layout.button_xy_m
    top = dimensions.BUTTON_TOP_M
    for name, low, high, look in (
        ("button_cap", 0.45, top, TABLE_CLASS),
        ("button_drawn", dimensions.BUTTON_FOOT_M, top - 0.001, {"material": "button", **VISUAL}),
    ):
        size = numbers((dimensions.BUTTON_RADIUS_M, 0.5 * (high - low)))
        disc = {"type": "cylinder", "pos": numbers((x_m, y_m, 0.5 * (low + high))), "size": size}
        ET.SubElement(button, "geom", {"name": name, **disc, **look})


def add_blocks(world: ET.Element, layout: TableLayout) -> None:
    """Add the three free blocks, each 1 kg, with its long side along its own x axis."""
    half_width = 0.5 * dimensions.BLOCK_WIDTH_M
    for name, length_m in layout.block_lengths_m.items():
        body = ET.SubElement(world, "body", {"name": f"{name}/base_link", "pos": "0 0 1"})
        ET.SubElement(body, "freejoint", {"name": name})
        size_m = (0.5 * length_m, half_width, half_width)
        feel = {"mass": "1", "condim": "4"}
        ET.SubElement(body, "geom", {"type": "box", "size": numbers(size_m), **feel, **BLOCK_CLASS})
        geom = {"name": f"{name}_drawn", "type": "box", "size": numbers(size_m), "material": name}
        ET.SubElement(body, "geom", {**geom, **VISUAL})


def add_floor(asset: ET.Element, world: ET.Element) -> None:
    _add_texture(asset, "floor", _FLOOR_PIXELS)
    place = {"name": "floor_drawn", "type": "plane", "size": numbers((_FLOOR_M, _FLOOR_M, 1.0))}
    ET.SubElement(world, "geom", {**place, "material": "floor", **VISUAL})


def add_table_assets(asset: ET.Element, layout: TableLayout) -> None:
    for name in ("wood", "panel"):
        _add_texture(asset, name, TEXTURE_SIZE)
    _drawn_base(layout).add_to(asset, "table_drawn")
    _drawn_drawer(layout).add_to(asset, "drawer_drawn")
    _drawn_door(layout).add_to(asset, "door_drawn")


def _add_texture(asset: ET.Element, name: str, size: int) -> None:
    """Add a texture, to be painted after compiling, and the material that shows it."""
    pixels = {"builtin": "flat", "width": str(size), "height": str(size)}
    ET.SubElement(asset, "texture", {"name": name, "type": "2d", **pixels})
    # Where the floor repeats it; meshes bring coordinates of their own.
    repeat = {"texuniform": "true", "texrepeat": "2 2"}
    ET.SubElement(asset, "material", {"name": name, "texture": name, "specular": "0", **repeat})


def _slope_surface() -> Surface:
    """Return a surface in the coordinates (x, along, out) of the cabinet's tilted face."""
    cos, sin = math.cos(FACE_TILT_RAD), math.sin(FACE_TILT_RAD)
    frame = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    return Surface(frame=frame, origin_m=(0.0, *dimensions.FACE_FOOT_YZ_M))


def _drawn_base(layout: TableLayout) -> Surface:
    wood, grain = Surface(), layout.grain_axis
    half_x, half_y, top = dimensions.TABLE_HALF_X_M, dimensions.TABLE_HALF_Y_M, dimensions.TABLE_TOP_M
    under = top - dimensions.TABLE_SLAB_M
    wood.box((-half_x, -half_y, under), (half_x, half_y, top), grain=grain)
    for x in (-half_x, half_x - 0.04):
        for y in (-half_y, half_y - 0.032):
            wood.box((x, y, 0.0), (x + 0.04, y + 0.032, under), grain=2, without="+z")
    apron_z = 0.3
    for y in (-0.16, 0.148):
        wood.box((-0.4, y, apron_z), (0.4, y + 0.012, under), grain=0, without="+z-x+x")
    for x in (-0.42, 0.4):
        wood.box((x, -0.148, apron_z), (x + 0.02, 0.148, under), grain=1, without="+z-y+y")
    foot, (top_y, top_z) = dimensions.FACE_FOOT_YZ_M, face_point(dimensions.FACE_LENGTH_M, 0.0)
    low, high = layout.cabinet_x_m
    # The uprights beside the opening, the rear wall and the beam over it.
    outline = (foot, (half_y, foot[1]), (half_y, top_z), (top_y, top_z))
    wood.prism(outline, -half_x, low, axis=0, grain=grain)
    wood.prism(outline, high, half_x, axis=0, grain=grain)
    beam_z = 0.6278
    beam_y = face_point((beam_z - foot[1]) / math.sin(FACE_TILT_RAD), 0.0)[0]
    wood.box((low, 0.16, top), (high, half_y, beam_z), grain=grain, without="-x+x-z+z")
    wood.prism(((beam_y, beam_z), (half_y, beam_z), (half_y, top_z), (top_y, top_z)), low, high, axis=0, grain=grain)
    x_m, y_m = layout.button_xy_m
    angles = 2.0 * math.pi * np.arange(_CORNERS) / _CORNERS
    rim = [
        (x_m + dimensions.BUTTON_RIM_M * math.cos(angle), y_m + dimensions.BUTTON_RIM_M * math.sin(angle))
        for angle in angles
    ]
    wood.prism(rim, top, dimensions.BUTTON_FOOT_M, axis=2, grain=grain)
    return wood


def _drawn_drawer(layout: TableLayout) -> Surface:
    wood, centre = Surface(), layout.drawer_x_m
    grain = layout.grain_axis
    floor, rim, bottom = 0.34, 0.4, 0.32
    wood.box((centre - 0.22, -0.18, 0.3), (centre + 0.22, -0.16, rim), grain=grain)
    for low, high in ((-0.2, -0.18), (0.18, 0.2)):
        wood.box((centre + low, -0.16, bottom), (centre + high, 0.06, rim), grain=1)
    wood.box((centre - 0.18, 0.04, bottom), (centre + 0.18, 0.06, rim), grain=0)
    wood.box((centre - 0.18, -0.16, bottom), (centre + 0.18, 0.04, floor), grain=grain)
    return wood


def _drawn_door(layout: TableLayout) -> Surface:
    wood = _slope_surface()
    low, high = layout.door_x_m
    wood.box((low, 0.0, 0.0), (high, 0.22, 0.02), grain=layout.grain_axis)
    return wood


def _bar(
    parent: ET.Element, lower: tuple[float, ...], upper: tuple[float, ...], material: str, *, on_slope: bool = False
) -> None:
    """Draw a box between two corners, in world axes or in those of the cabinet's face."""
    centre = 0.5 * (np.array(lower) + np.array(upper))
    half = 0.5 * (np.array(upper) - np.array(lower))
    place = {"pos": numbers(centre)}
    if on_slope:
        place = {"pos": numbers((centre[0], *face_point(centre[1], centre[2]))), "euler": _FACE_EULER}
    ET.SubElement(parent, "geom", {"type": "box", "size": numbers(half), "material": material, **place, **VISUAL})
