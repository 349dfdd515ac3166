"""Where everything stands on the table in scenes A to D (layout.json); shapes of its parts are in scene.xml.

All lengths are metres in world coordinates after CALVIN's global scaling of 0.8. Sources: CALVIN's scene and camera
configuration and the bounding boxes of its table, measured in the running environment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from rfedge.data.robot import BASE_M
from rfedge.envs.interface import BLOCKS
from rfedge.errors import one_of

Range = tuple[float, float]

# --- what all four scenes share -------------------------------------------------------------------------------------
TABLE_HALF_X_M: Final = 0.44
TABLE_HALF_Y_M: Final = 0.18
TABLE_TOP_M: Final = 0.44
TABLE_SLAB_M: Final = 0.04  # thickness of the tabletop
CABINET_TOP_M: Final = 0.648
OPENING_MARGIN_M: Final = 0.03  # by which a hand may reach beyond the cabinet's floor, on each side
PLANK_TOP_M: Final = 0.441  # a block resting in the cabinet has its centre at 0.461
BLOCK_WIDTH_M: Final = 0.04
CHAIN_YAW_RAD: Final = (3.0 * math.pi / 8.0, 5.0 * math.pi / 8.0)  # of blocks where a chain begins
BLOCK_LENGTHS_M: Final = {"small": 0.04, "middle": 0.056, "big": 0.08}

DRAWER_MAX_M: Final = 0.22
DRAWER_FLOOR_M: Final = 0.342  # upper side of its bottom
DRAWER_INNER_HALF_X_M: Final = 0.177
DRAWER_WALL_M: Final = 0.0226  # front and rear
BUTTON_TRIGGER_M: Final = 0.01
SWITCH_MAX_M: Final = 0.088
SWITCH_TRIGGER_M: Final = 0.044

DRAWER_HANDLE_YZ_M: Final = (-0.2475, 0.36)
SLIDE_HANDLE_YZ_M: Final = (0.018, 0.568)
SWITCH_TIP_YZ_M: Final = (0.005, 0.527)
BUTTON_TOP_M: Final = 0.485  # where a finger meets it
BUTTON_FOOT_M: Final = 0.46  # upper side of the wooden rim around it
BUTTON_RIM_M: Final = 0.04  # radius

BASE_POSITION_M: Final = BASE_M

# The tilted face of the cabinet, in which door and switch run.
FACE_FOOT_YZ_M: Final = (0.02, TABLE_TOP_M)  # where it meets the tabletop
FACE_TILT_RAD: Final = math.radians(60.0)  # against the horizontal
FACE_LENGTH_M: Final = (CABINET_TOP_M - TABLE_TOP_M) / math.sin(FACE_TILT_RAD)  # from the foot to the upper edge


def face_point(along_m: float, out_m: float) -> tuple[float, float]:
    """Return (y, z) of the point `along_m` up the cabinet's face and `out_m` in front of it."""
    cos, sin = math.cos(FACE_TILT_RAD), math.sin(FACE_TILT_RAD)
    return FACE_FOOT_YZ_M[0] + along_m * cos - out_m * sin, FACE_FOOT_YZ_M[1] + along_m * sin + out_m * cos


@dataclass(frozen=True, slots=True)
class Wood:
    rgb: tuple[float, float, float]  # mean colour, 0 to 1
    spread: float  # standard deviation of its brightness, on the same scale


@dataclass(frozen=True, slots=True)
class TableLayout:
    scene: str  # "A" to "D"
    # wood, panel: of table and cabinet, and of door and drawer
    wood: Wood
    panel: Wood
    grain_axis: int  # the axis along which the grain of the tabletop runs
    slide_max_m: float  # travel of the sliding door; 0 is fully right, the maximum fully left
    door_x_m: Range  # extent of the door at joint position 0
    cabinet_x_m: Range  # extent of the cabinet's floor behind the door
    # button_xy_m, switch_x_m, drawer_x_m, led_x_m, bulb_x_m: centres
    button_xy_m: tuple[float, float]
    switch_x_m: float
    drawer_x_m: float
    led_x_m: float
    bulb_x_m: float
    block_sizes: tuple[str, str, str]  # size name of the red, blue and pink block
    block_order: tuple[str, str, str]  # order of the blocks in scene_obs
    # table_area_m, slider_left_area_m, slider_right_area_m: x and y ranges of random block positions
    table_area_m: tuple[Range, Range]
    slider_left_area_m: tuple[Range, Range]
    slider_right_area_m: tuple[Range, Range]

    @property
    def slide_handle_x_m(self) -> float:
        """Centre of the door, and so of its handle, at joint position 0."""
        return 0.5 * (self.door_x_m[0] + self.door_x_m[1])

    @property
    def opening_x_m(self) -> Range:
        """Extent that hands may use of the cabinet: a little more than its floor, over whose ends they reach."""
        return self.cabinet_x_m[0] - OPENING_MARGIN_M, self.cabinet_x_m[1] + OPENING_MARGIN_M

    @property
    def block_lengths_m(self) -> dict[str, float]:
        """Length along the block's own x axis, by block name; its y and z sides are `BLOCK_WIDTH_M`."""
        return {name: BLOCK_LENGTHS_M[size] for name, size in zip(BLOCKS, self.block_sizes, strict=True)}


LAYOUTS: Final = TypeAdapter(dict[str, TableLayout]).validate_json(Path(__file__).with_suffix(".json").read_bytes())


def find_layout(scene: str) -> TableLayout:
    """Return the layout of `scene`."""
    return LAYOUTS[one_of(LAYOUTS, scene, "scene", remedy="Choose one of the four tables.")]
