"""Samples random block positions on the table and in its cabinet, without overlap and without a simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from rfedge.envs.interface import BLOCKS, SCENE_STATE_SIZE, Float64Array
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import TableLayout
from rfedge.errors import ConfigError

SURFACES: Final = ("table", "slider_left", "slider_right")
_MAX_TRIES: Final = 1000
_SPOT_M: Final = 0.015  # from a spot along x and y, at most
_GAP_M: Final = 0.004  # smallest distance between two blocks
# In the cabinet a block must stand clear of the rear wall and of the tilted door, whatever its yaw.
# Positions in the drawer that an upright gripper reaches when it is open, measured from the drawer's centre in x and from
# where y = 0 of the closed drawer has moved to.
_DRAWER_X_M: Final = (-0.12, 0.12)
_DRAWER_Y_M: Final = (-0.12, -0.05)
_SHELF_Y_M: Final = (0.05, 0.158)


def block_slice(layout: TableLayout, block: str) -> slice:
    """Return where xyz and euler xyz of `block` lie within scene_obs."""
    start = 6 + 6 * layout.block_order.index(block)
    return slice(start, start + 6)


def _corners(pose: Float64Array, length_m: float) -> Float64Array:
    """Return the four corners (4, 2) of a block seen from above."""
    cos, sin = math.cos(pose[5]), math.sin(pose[5])
    half = np.array([0.5 * length_m, 0.5 * dimensions.BLOCK_WIDTH_M])
    signs = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)])
    return np.asarray(pose[:2] + (signs * half) @ np.array([[cos, sin], [-sin, cos]]), dtype=np.float64)


def _overlap(first: Float64Array, second: Float64Array, gap_m: float) -> bool:
    """Return whether two rectangles, given by corners (4, 2), come nearer than `gap_m`: separating axes."""
    for corners in (first, second):
        for edge in (corners[1] - corners[0], corners[2] - corners[1]):
            axis = edge / np.linalg.norm(edge)
            a, b = first @ axis, second @ axis
            if a.min() > b.max() + gap_m or b.min() > a.max() + gap_m:
                return False
    return True


def _sample_pose(layout: TableLayout, surface: str, drawer_m: float, rng: np.random.Generator) -> Float64Array:
    drawer_x_m = (layout.drawer_x_m + _DRAWER_X_M[0], layout.drawer_x_m + _DRAWER_X_M[1])
    area, floor_m = {
        "table": (layout.table_area_m, dimensions.TABLE_TOP_M),
        "slider_left": (layout.slider_left_area_m, dimensions.PLANK_TOP_M),
        "slider_right": (layout.slider_right_area_m, dimensions.PLANK_TOP_M),
        "drawer": ((drawer_x_m, (_DRAWER_Y_M[0] - drawer_m, _DRAWER_Y_M[1] - drawer_m)), dimensions.DRAWER_FLOOR_M),
    }[surface]
    (x_low, x_high), (y_low, y_high) = area
    pose = np.zeros(6)
    pose[:3] = rng.uniform(x_low, x_high), rng.uniform(y_low, y_high), floor_m + 0.5 * dimensions.BLOCK_WIDTH_M
    pose[5] = rng.uniform(-math.pi, math.pi)
    return pose


def sample_scene(
    layout: TableLayout,
    rng: np.random.Generator,
    *,
    surfaces: Mapping[str, str] | None = None,
    slide_m: float = 0.0,
    drawer_m: float = 0.0,
    switch_m: float = 0.0,
    bulb_on: bool = False,
    led_on: bool = False,
    gap_m: float = _GAP_M,
    spots: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Float64Array:
    """Return scene_obs (24,) with random block poses.

    `surfaces` names the surface of a block, one of `SURFACES` or "drawer", else it is sampled; `spots` gives (x, y) in m of
    places on a surface near which blocks stand as in CALVIN's chains.
    """
    scene = np.zeros(SCENE_STATE_SIZE)
    scene[[0, 1, 3]] = slide_m, drawer_m, switch_m
    scene[4], scene[5] = float(bulb_on), float(led_on)
    for _ in range(_MAX_TRIES):
        outlines: list[Float64Array] = []
        for block in BLOCKS:
            surface = (surfaces or {}).get(block) or str(rng.choice(SURFACES))
            pose = _sample_pose(layout, surface, drawer_m, rng)
            if spots and surface in spots:
                pose[:2] = rng.choice(spots[surface]) + rng.uniform(-_SPOT_M, _SPOT_M, size=2)
                pose[5] = rng.uniform(*dimensions.CHAIN_YAW_RAD)
            corners = _corners(pose, layout.block_lengths_m[block])
            on_shelf = surface.startswith("slider")
            if on_shelf and (corners[:, 1].min() < _SHELF_Y_M[0] or corners[:, 1].max() > _SHELF_Y_M[1]):
                break
            if any(_overlap(corners, other, gap_m) for other in outlines):
                break
            outlines.append(corners)
            scene[block_slice(layout, block)] = pose
        if len(outlines) == len(BLOCKS):
            return scene
    remedy = "Spread the blocks over more surfaces."
    raise ConfigError("blocks", got=dict(surfaces or {}), expected="places with room", remedy=remedy)
