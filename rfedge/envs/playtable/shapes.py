"""Meshes of what the cameras see: the table's wood with its grain, in CALVIN's dimensions, and the hulls of the arm.

Physics has shapes of its own, in scene.xml. arm.json holds the hulls, lengths in metres:

    links    of each link, the hull of rings: axis, centre, radius or half axes of an ellipse; and of a motor housing that
             ends in a dome: axis, centre of its foot, centre of its cap
    hand     boxes that taper from (half x, half y, z) to the same
    finger   boxes of the left finger that taper from (x, x, y, y, z) to the same
"""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from rfedge.envs.interface import Float64Array
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import FACE_TILT_RAD, TableLayout, face_point

_ARM: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("arm.json").read_text())
_RIM_CORNERS: Final = 12  # of the rim around the button
_RING_CORNERS: Final = 14
_TILE_M: Final = 0.75  # what one copy of a texture covers, along and across the grain
Corner = Sequence[float]
Corners = Sequence[Corner] | Float64Array


def numbers(values: Any) -> str:
    """Write numbers as an MJCF attribute, without losing digits."""
    return " ".join(repr(float(value)) for value in np.ravel(values))


class Surface:
    """A mesh of flat faces. Every face has its own corners, so that its shading is flat and its texture lies in its plane.

    Points are transformed by `frame` (3, 3) and `origin_m` (3,), which is how parts follow the tilted cabinet face.
    """

    def __init__(self, *, frame: Float64Array | None = None, origin_m: Corner = (0.0, 0.0, 0.0)) -> None:
        self._frame = np.eye(3) if frame is None else frame
        self._origin = np.array(origin_m, dtype=np.float64)
        self._vertices: list[Float64Array] = []
        self._texcoords: list[Float64Array] = []
        self._faces: list[tuple[int, int, int]] = []

    def polygon(self, corners_m: Corners, *, grain: int = 0) -> None:
        """Add a convex polygon, counterclockwise as seen from outside; `grain` is the axis along which its texture runs."""
        points = np.array(corners_m, dtype=np.float64)
        normal = np.cross(points[1] - points[0], points[2] - points[1])
        along = np.eye(3)[grain] - normal * normal[grain] / (normal @ normal)
        if along @ along < 0.1:  # end grain: the texture runs along whichever axis the face has
            along = points[1] - points[0]
        along /= np.linalg.norm(along)
        across = np.cross(normal / np.linalg.norm(normal), along)
        first = len(self._vertices)
        self._vertices += list(points @ self._frame.T + self._origin)
        self._texcoords += list(points @ np.array([along, across]).T / _TILE_M)
        self._faces += [(first, first + index, first + index + 1) for index in range(1, len(points) - 1)]

    def box(self, lower_m: Corner, upper_m: Corner, *, grain: int = 0, without: str = "") -> None:
        """Add an axis-aligned box; `without` names faces that nobody sees, for instance "-z+y"."""
        for axis, name in enumerate("xyz"):
            for sign, level in (("-", lower_m[axis]), ("+", upper_m[axis])):
                if sign + name in without:
                    continue
                # the two other axes in the order that makes the face look along +axis
                u, v = (axis + 1) % 3, (axis + 2) % 3
                corners = np.full((4, 3), level, dtype=np.float64)
                corners[:, u] = np.array([lower_m[u], upper_m[u], upper_m[u], lower_m[u]])
                corners[:, v] = np.array([lower_m[v], lower_m[v], upper_m[v], upper_m[v]])
                self.polygon(corners if sign == "+" else corners[::-1], grain=grain)

    def prism(self, outline_m: Corners, low_m: float, high_m: float, *, axis: int, grain: int = 0) -> None:
        """Extrude a convex outline along `axis`; it lies in the two axes that follow, counterclockwise seen from +axis."""
        u, v = (axis + 1) % 3, (axis + 2) % 3
        outline = np.array(outline_m, dtype=np.float64)

        def at(level: float) -> Float64Array:
            corners = np.full((len(outline), 3), level)
            corners[:, u], corners[:, v] = outline[:, 0], outline[:, 1]
            return corners

        low, high = at(low_m), at(high_m)
        self.polygon(high, grain=grain)
        self.polygon(low[::-1], grain=grain)
        for index in range(len(outline)):
            after = (index + 1) % len(outline)
            self.polygon([low[index], low[after], high[after], high[index]], grain=grain)

    def add_to(self, asset: ET.Element, name: str) -> None:
        texcoords = numbers(self._texcoords)
        faces = " ".join(str(index) for face in self._faces for index in face)
        # An open surface has no volume: MuJoCo then takes its frame from its area. Visual parts have no mass either way.
        mesh = {"name": name, "vertex": numbers(self._vertices), "texcoord": texcoords, "face": faces, "inertia": "shell"}
        ET.SubElement(asset, "mesh", mesh)


def add_meshes(asset: ET.Element, layout: TableLayout) -> None:
    _drawn_base(layout).add_to(asset, "table_drawn")
    _drawn_drawer(layout).add_to(asset, "drawer_drawn")
    _drawn_door(layout).add_to(asset, "door_drawn")
    _add_arm_meshes(asset)


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
    angles = 2.0 * math.pi * np.arange(_RIM_CORNERS) / _RIM_CORNERS
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
    # In the coordinates (x, along, out) of the cabinet's tilted face.
    cos, sin = math.cos(FACE_TILT_RAD), math.sin(FACE_TILT_RAD)
    frame = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    wood = Surface(frame=frame, origin_m=(0.0, *dimensions.FACE_FOOT_YZ_M))
    low, high = layout.door_x_m
    wood.box((low, 0.0, 0.0), (high, 0.22, 0.02), grain=layout.grain_axis)
    return wood


def _add_arm_meshes(asset: ET.Element) -> None:
    def add(name: str, points: object) -> None:
        # MuJoCo makes the convex hull of a mesh that has no faces.
        ET.SubElement(asset, "mesh", {"name": name, "vertex": numbers(points), "inertia": "shell"})

    for link, parts in enumerate(_ARM["links"]):
        for index, part in enumerate(parts):
            rings = part["rings"] + (_dome(*part["dome"]) if "dome" in part else [])
            add(f"link{link}_{index}", np.vstack([_ring(*ring) for ring in rings]))
    for index, ends in enumerate(_ARM["hand"]):
        add(f"hand_{index}", _tapered(*((-x, x, -y, y, z) for x, y, z in ends)))
    for index, (low, high) in enumerate(_ARM["finger"]):
        for name, sign in (("left", 1.0), ("right", -1.0)):
            add(f"{name}finger_{index}", np.array(_tapered(low, high)) * (sign, sign, 1.0))


def _dome(axis: str, start_m: Sequence[float], end_m: Sequence[float]) -> list[tuple[str, Sequence[float], float]]:
    """Return the rings of a motor housing of radius 55 mm from `start_m` to its rounded cap at `end_m`."""
    start, end = np.array(start_m), np.array(end_m)
    inward = (start - end) / np.linalg.norm(start - end)
    rounding = ((0.0, 0.03), (0.01, 0.045), (0.03, 0.053))
    return [(axis, start_m, 0.055), *((axis, (end + depth_m * inward).tolist(), radius_m) for depth_m, radius_m in rounding)]


def _ring(axis: str, centre_m: Sequence[float], radius_m: float | Sequence[float]) -> Float64Array:
    """Return the corners (_RING_CORNERS, 3) of a ring about an axis, "x", "y" or "z"."""
    half = np.broadcast_to(radius_m, 2)
    turn = 2.0 * math.pi * np.arange(_RING_CORNERS) / _RING_CORNERS
    points = np.tile(np.array(centre_m, dtype=np.float64), (_RING_CORNERS, 1))
    first, second = (other for other in range(3) if other != "xyz".index(axis))
    points[:, first] += half[0] * np.cos(turn)
    points[:, second] += half[1] * np.sin(turn)
    return points


def _tapered(low: Sequence[float], high: Sequence[float]) -> list[tuple[float, float, float]]:
    """Return the eight corners between two rectangles (x, x, y, y, z)."""
    return [(x, y, end[4]) for end in (low, high) for x in end[:2] for y in end[2:4]]
