"""Draws the arm, without mass and contacts: each part is the convex hull of a few rings."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Final

import numpy as np

from rfedge.envs.interface import Float64Array
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.surfaces import DRAWN, numbers

_CORNERS: Final = 14

# A ring: axis ("x", "y" or "z"), centre in the frame of the joint in metres, radius, or the two half axes of an ellipse.
Ring = tuple[str, tuple[float, float, float], float | tuple[float, float]]


def _dome(axis: str, start_m: tuple[float, float, float], end_m: tuple[float, float, float]) -> tuple[Ring, ...]:
    """Return the rings of a motor housing of radius 55 mm from `start_m` to its rounded cap at `end_m`."""
    start, end = np.array(start_m), np.array(end_m)
    inward = (start - end) / np.linalg.norm(start - end)
    rounding = ((0.0, 0.03), (0.01, 0.045), (0.03, 0.053))
    caps: list[Ring] = [(axis, tuple((end + depth_m * inward).tolist()), radius_m) for depth_m, radius_m in rounding]
    return ((axis, start_m, 0.055), *caps)


_FOREARM: Final[tuple[Ring, ...]] = (("z", (0.0, 0.053, -0.165), (0.037, 0.041)), ("z", (0.0, 0.08, -0.134), (0.031, 0.021)))
# link -> (material, rings) of its parts
_PARTS: Final[tuple[tuple[tuple[str, tuple[Ring, ...]], ...], ...]] = (
    (
        ("shell", (("z", (0.0, 0.0, -0.192), 0.055), ("z", (0.0, 0.0, -0.13), 0.055))),
        ("shell", (("z", (0.0, 0.0, -0.13), 0.055), *_dome("y", (0.0, -0.001, 0.0), (0.0, -0.129, 0.0)))),
    ),
    (
        ("shell", (("y", (0.0, -0.194, 0.0), 0.055), ("y", (0.0, -0.13, 0.0), 0.055))),
        ("shell", (("y", (0.0, -0.13, 0.0), 0.055), *_dome("z", (0.0, 0.0, 0.001), (0.0, 0.0, 0.129)))),
    ),
    (
        ("shell", (("z", (0.0, 0.0, -0.121), 0.055), ("z", (0.0, 0.0, -0.07), 0.051), ("z", (0.0, 0.0, -0.03), 0.035))),
        ("shell", (("z", (0.01, 0.0, -0.07), 0.049), *_dome("y", (0.0825, 0.001, 0.0), (0.0825, 0.1, 0.0)))),
        ("ring", (("y", (0.0825, 0.055, 0.0), 0.0553), ("y", (0.0825, 0.068, 0.0), 0.0553))),
    ),
    (
        (
            "shell",
            (
                ("y", (-0.0825, 0.124, 0.0), 0.055),
                ("y", (-0.0825, 0.08, 0.0), 0.055),
                *_dome("z", (0.0, 0.0, 0.001), (0.0, 0.0, 0.111)),
            ),
        ),
        ("ring", (("z", (0.0, 0.0, 0.06), 0.0553), ("z", (0.0, 0.0, 0.074), 0.0553))),
    ),
    (
        ("shell", (("z", (0.0, 0.0, -0.259), 0.055), ("z", (0.0, 0.0, -0.226), 0.053), *_FOREARM)),
        ("shell", (*_FOREARM, ("z", (0.0, 0.09, -0.06), (0.033, 0.021)))),
        (
            "shell",
            (("z", (0.0, 0.092, -0.06), (0.033, 0.021)), ("y", (0.0, 0.016, 0.0), 0.049), ("y", (0.0, 0.128, 0.0), 0.045)),
        ),
        ("ring", (("z", (0.0, 0.1, -0.16), (0.02, 0.004)), ("z", (0.0, 0.117, -0.05), (0.02, 0.004)))),
    ),
    (
        (
            "shell",
            (
                ("z", (0.0, 0.0, -0.015), 0.047),
                ("z", (0.0, 0.0, 0.03), 0.047),
                ("z", (0.075, 0.0, 0.03), 0.04),
                ("z", (0.075, 0.0, -0.02), 0.04),
            ),
        ),
        (
            "shell",
            (
                ("y", (0.088, -0.051, 0.0), 0.044),
                ("y", (0.088, 0.045, 0.0), 0.044),
                ("y", (0.088, 0.078, 0.0), 0.034),
                ("z", (0.02, 0.02, 0.0), 0.035),
            ),
        ),
        (
            "ring",
            (
                ("z", (0.0, 0.0, 0.028), 0.046),
                ("z", (0.0, 0.0, 0.053), 0.042),
                ("z", (0.032, 0.0, 0.028), 0.036),
                ("z", (0.032, 0.0, 0.05), 0.032),
            ),
        ),
        ("shell", (("z", (0.004, 0.0, 0.03), 0.03), ("z", (0.004, 0.0, 0.0555), 0.028))),
        ("vent", (("y", (0.088, 0.07, 0.0), 0.03), ("y", (0.088, 0.081, 0.0), 0.026))),
    ),
    (
        ("shell", (("z", (0.0, 0.0, 0.052), 0.044), ("z", (0.0, 0.0, 0.097), 0.044), ("z", (0.0, 0.0, 0.107), 0.036))),
        (
            "shell",
            (
                ("z", (0.0, 0.0, 0.064), 0.044),
                ("z", (0.0, 0.0, 0.097), 0.044),
                ("z", (0.045, 0.045, 0.07), 0.02),
                ("z", (0.045, 0.045, 0.095), 0.022),
            ),
        ),
    ),
)
# boxes of the hand that taper from (half x, half y, z) to (half x, half y, z)
_HAND: Final = (
    ((0.024, 0.07, -0.01), (0.032, 0.092, 0.002)),
    ((0.032, 0.092, 0.002), (0.024, 0.1, 0.012)),
    ((0.024, 0.1, 0.012), (0.017, 0.098, 0.065)),
)
# boxes of the left finger that taper from (x, x, y, y, z) to the same
_FINGER: Final = (
    ((-0.0097, 0.0112, 0.0125, 0.0267, 0.0585), (-0.0097, 0.0112, 0.0125, 0.0261, 0.0784)),
    ((-0.0092, 0.0107, 0.0060, 0.0261, 0.0784), (-0.0091, 0.0107, 0.0036, 0.0152, 0.0984)),
    ((-0.0091, 0.0106, 0.0036, 0.0150, 0.0984), (-0.0090, 0.0104, 0.0036, 0.0147, 0.1115)),
    ((-0.0090, 0.0102, 0.0036, 0.0101, 0.1115), (-0.0082, 0.0100, 0.0041, 0.0055, 0.1545)),
)


def _ring(ring: Ring) -> Float64Array:
    """Return the corners (_CORNERS, 3) of a ring."""
    axis, centre_m, radius_m = ring
    half = radius_m if isinstance(radius_m, tuple) else (radius_m, radius_m)
    turn = 2.0 * math.pi * np.arange(_CORNERS) / _CORNERS
    points = np.tile(np.array(centre_m, dtype=np.float64), (_CORNERS, 1))
    first, second = (other for other in range(3) if other != "xyz".index(axis))
    points[:, first] += half[0] * np.cos(turn)
    points[:, second] += half[1] * np.sin(turn)
    return points


def _tapered(low: Sequence[float], high: Sequence[float]) -> list[tuple[float, float, float]]:
    """Return the eight corners between two rectangles (x, x, y, y, z)."""
    return [(x, y, end[4]) for end in (low, high) for x in end[:2] for y in end[2:4]]


def add_arm_meshes(asset: ET.Element) -> None:
    """Add the hulls of all parts to the model's assets."""

    def add(name: str, points: object) -> None:
        # MuJoCo makes the convex hull of a mesh that has no faces.
        ET.SubElement(asset, "mesh", {"name": name, "vertex": numbers(points), "inertia": "shell"})

    for link, parts in enumerate(_PARTS):
        for index, (_, rings) in enumerate(parts):
            add(f"link{link}_{index}", np.vstack([_ring(ring) for ring in rings]))
    for index, ends in enumerate(_HAND):
        add(f"hand_{index}", _tapered(*((-x, x, -y, y, z) for x, y, z in ends)))
    for index, (low, high) in enumerate(_FINGER):
        for name, sign in (("left", 1.0), ("right", -1.0)):
            add(f"{name}finger_{index}", np.array(_tapered(low, high)) * (sign, sign, 1.0))


def _mesh(parent: ET.Element, mesh: str, material: str = "shell") -> None:
    ET.SubElement(parent, "geom", {"name": f"{mesh}_drawn", "type": "mesh", "mesh": mesh, "material": material, **DRAWN})


def draw_base(world: ET.Element, link0: ET.Element) -> None:
    """Draw the pedestal and the foot of the arm."""
    x_m, y_m, z_m = dimensions.BASE_POSITION_M
    look = {"material": "shell", **DRAWN}
    stand = {"pos": numbers((x_m, y_m, 0.5 * z_m)), "size": numbers((0.13, 0.5 * z_m))}
    ET.SubElement(world, "geom", {"name": "pedestal_drawn", "type": "cylinder", **stand, **look})
    foot = {"type": "capsule", "fromto": "-0.06 0 0.06 0 0 0.06", "size": "0.075"}
    ET.SubElement(link0, "geom", {"name": "foot_drawn", **foot, **look})


def draw_link(body: ET.Element, index: int) -> None:
    """Draw the link that joint `index` turns."""
    for part, (material, _) in enumerate(_PARTS[index]):
        _mesh(body, f"link{index}_{part}", material)


def draw_hand(hand: ET.Element) -> None:
    """Draw the hand."""
    for index in range(len(_HAND)):
        _mesh(hand, f"hand_{index}")


def draw_finger(finger: ET.Element, name: str) -> None:
    """Draw the "left" or the "right" finger."""
    for index in range(len(_FINGER)):
        _mesh(finger, f"{name}finger_{index}")


def draw_camera(mount: ET.Element) -> None:
    """Draw the camera's housing."""
    housing = {"type": "box", "size": "0.04 0.0125 0.005", "material": "shell"}
    ET.SubElement(mount, "geom", {"name": "camera_drawn", **housing, **DRAWN})
