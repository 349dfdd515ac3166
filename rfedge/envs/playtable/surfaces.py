"""Builds textured meshes from flat faces: what the cameras see of the table; physics has shapes of its own."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from rfedge.envs.interface import Float64Array

# of every visual geom: no mass, no contacts, and a group that MuJoCo shows
VISUAL: Final = {"contype": "0", "conaffinity": "0", "mass": "0", "group": "1"}

TILE_M: Final = 0.75  # what one copy of a texture covers, along and across the grain
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
        self._texcoords += list(points @ np.array([along, across]).T / TILE_M)
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
        # An open surface has no volume: MuJoCo then takes its frame from its area. Drawn parts have no mass either way.
        mesh = {"name": name, "vertex": numbers(self._vertices), "texcoord": texcoords, "face": faces, "inertia": "shell"}
        ET.SubElement(asset, "mesh", mesh)
