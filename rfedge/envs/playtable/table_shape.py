"""Draws the table, without mass and contacts: wood with its grain, handles, button, lights and the floor.

Dimensions are CALVIN's, measured; `rfedge.envs.playtable.table` has the shapes that physics collides.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import Final

import numpy as np

from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import SLOPE, TableLayout
from rfedge.envs.playtable.surfaces import DRAWN, Surface, numbers
from rfedge.envs.playtable.wood import TEXTURE_SIZE

_CORNERS: Final = 12
_FLOOR_M: Final = 6.0
_FLOOR_PIXELS: Final = 64


def _slope_surface() -> Surface:
    """Return a surface in the coordinates (x, along, out) of the cabinet's tilted face."""
    cos, sin = math.cos(SLOPE.tilt_rad), math.sin(SLOPE.tilt_rad)
    frame = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    return Surface(frame=frame, origin_m=(0.0, SLOPE.foot_y_m, SLOPE.foot_z_m))


def add_floor(asset: ET.Element, world: ET.Element) -> None:
    """Draw the checkered floor."""
    _add_texture(asset, "floor", _FLOOR_PIXELS)
    place = {"name": "floor_drawn", "type": "plane", "size": numbers((_FLOOR_M, _FLOOR_M, 1.0))}
    ET.SubElement(world, "geom", {**place, "material": "floor", **DRAWN})


def _add_texture(asset: ET.Element, name: str, size: int) -> None:
    """Add a texture, to be painted after compiling, and the material that shows it."""
    pixels = {"builtin": "flat", "width": str(size), "height": str(size)}
    ET.SubElement(asset, "texture", {"name": name, "type": "2d", **pixels})
    # Where the floor repeats it; meshes bring coordinates of their own.
    repeat = {"texuniform": "true", "texrepeat": "2 2"}
    ET.SubElement(asset, "material", {"name": name, "texture": name, "specular": "0", **repeat})


def add_table_assets(asset: ET.Element, layout: TableLayout) -> None:
    """Add textures and meshes of the table."""
    for name in ("wood", "panel"):
        _add_texture(asset, name, TEXTURE_SIZE)
    _base(layout).add_to(asset, "table_drawn")
    _drawer(layout).add_to(asset, "drawer_drawn")
    _door(layout).add_to(asset, "door_drawn")


def _base(layout: TableLayout) -> Surface:
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
    foot, (top_y, top_z) = (SLOPE.foot_y_m, SLOPE.foot_z_m), SLOPE.point(SLOPE.length_m, 0.0)
    low, high = layout.cabinet_x_m
    # The uprights beside the opening, the rear wall and the beam over it.
    outline = (foot, (half_y, foot[1]), (half_y, top_z), (top_y, top_z))
    wood.prism(outline, -half_x, low, axis=0, grain=grain)
    wood.prism(outline, high, half_x, axis=0, grain=grain)
    beam_z = 0.6278
    beam_y = SLOPE.point((beam_z - foot[1]) / math.sin(SLOPE.tilt_rad), 0.0)[0]
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


def _drawer(layout: TableLayout) -> Surface:
    wood, centre = Surface(), layout.drawer_x_m
    grain = layout.grain_axis
    floor, rim, bottom = 0.34, 0.4, 0.32
    wood.box((centre - 0.22, -0.18, 0.3), (centre + 0.22, -0.16, rim), grain=grain)
    for low, high in ((-0.2, -0.18), (0.18, 0.2)):
        wood.box((centre + low, -0.16, bottom), (centre + high, 0.06, rim), grain=1)
    wood.box((centre - 0.18, 0.04, bottom), (centre + 0.18, 0.06, rim), grain=0)
    wood.box((centre - 0.18, -0.16, bottom), (centre + 0.18, 0.04, floor), grain=grain)
    return wood


def _door(layout: TableLayout) -> Surface:
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
        place = {"pos": numbers((centre[0], *SLOPE.point(centre[1], centre[2]))), "euler": f"{SLOPE.tilt_rad!r} 0 0"}
    ET.SubElement(parent, "geom", {"type": "box", "size": numbers(half), "material": material, **place, **DRAWN})


def draw_table(bodies: dict[str, ET.Element], layout: TableLayout) -> None:
    """Draw every part into the body that moves it; `bodies` are the links of the table by name."""
    for link, mesh, material in (
        ("base", "table_drawn", "wood"),
        ("drawer", "drawer_drawn", "panel"),
        ("slide", "door_drawn", "panel"),
    ):
        ET.SubElement(bodies[link], "geom", {"name": mesh, "type": "mesh", "mesh": mesh, "material": material, **DRAWN})
    _draw_handles(bodies, layout)
    _draw_switch(bodies, layout)
    x_m, y_m = layout.button_xy_m
    low, high = dimensions.BUTTON_FOOT_M, dimensions.BUTTON_TOP_M - 0.001
    disc = {
        "pos": numbers((x_m, y_m, 0.5 * (low + high))),
        "size": numbers((dimensions.BUTTON_RADIUS_M, 0.5 * (high - low))),
    }
    ET.SubElement(
        bodies["button"], "geom", {"name": "button_drawn", "type": "cylinder", **disc, "material": "button", **DRAWN}
    )


def _draw_handles(bodies: dict[str, ET.Element], layout: TableLayout) -> None:
    x_m = layout.drawer_x_m
    _bar(bodies["drawer"], (x_m - 0.12, -0.26, 0.34), (x_m + 0.12, -0.24, 0.38), "handle")
    for low in (-0.12, 0.1):
        _bar(bodies["drawer"], (x_m + low, -0.24, 0.34), (x_m + low + 0.02, -0.18, 0.38), "handle")
    x_m = layout.slide_handle_x_m
    _bar(bodies["slide"], (x_m - 0.02, 0.03, 0.06), (x_m + 0.02, 0.19, 0.08), "handle", on_slope=True)
    for low in (0.03, 0.17):
        _bar(bodies["slide"], (x_m - 0.02, low, 0.02), (x_m + 0.02, low + 0.02, 0.06), "handle", on_slope=True)


def _draw_switch(bodies: dict[str, ET.Element], layout: TableLayout) -> None:
    x_m = layout.switch_x_m
    _bar(bodies["switch"], (x_m - 0.06, 0.06, 0.036), (x_m + 0.06, 0.092, 0.056), "switch", on_slope=True)
    for low in (-0.06, 0.04):
        _bar(bodies["switch"], (x_m + low, 0.06, 0.0), (x_m + low + 0.02, 0.092, 0.036), "switch", on_slope=True)
        _bar(bodies["base"], (x_m + low, 0.06, -0.001), (x_m + low + 0.02, 0.18, 0.0005), "slot", on_slope=True)


def draw_block(body: ET.Element, name: str, size_m: tuple[float, float, float]) -> None:
    """Draw one block; `size_m` are its half sides."""
    ET.SubElement(body, "geom", {"name": f"{name}_drawn", "type": "box", "size": numbers(size_m), "material": name, **DRAWN})
