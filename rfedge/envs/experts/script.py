"""The vocabulary in which experts are written: the state as they see it, anchors, waypoints around them, and scripts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from rfedge.envs.interface import BLOCKS, Float64Array
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import BASE_POSITION_M, TableLayout
from rfedge.envs.playtable.placement import block_slice
from rfedge.robot.rotations import euler_to_matrix

SLIDE: Final = 0  # places in scene_obs
DRAWER: Final = 1

# A block is held when the closed fingers are kept apart and its centre lies between them.
_HELD_DISTANCE_M: Final = 0.04
_HELD_WIDTH_M: Final = (0.02, 0.065)
# Heights of a block's centre that tell the surfaces apart: drawer 0.362, table 0.46, cabinet 0.461, on a block 0.50.
_DRAWER_BELOW_M: Final = 0.41
_STACKED_ABOVE_M: Final = 0.485
_CABINET_Y_M: Final = 0.03
# Spots on the table that hand and arm reach easily, and how far apart two blocks should stand.
_SPOT_Y_M: Final = (-0.13, -0.09)
_SPOT_REACH_M: Final = 0.70
_SPOT_STEP_M: Final = 0.02
_SPOT_GAP_M: Final = 0.10
_BUTTON_GAP_M: Final = 0.11


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """One observed moment."""

    layout: TableLayout
    robot_obs: Float64Array  # (15,), see `rfedge.envs.interface.Environment`
    scene_obs: Float64Array  # (24,)
    start_scene: Float64Array  # scene_obs (24,) when the task began
    attempt: int = 0  # 0 for the first try, counting up

    @property
    def tcp_m(self) -> Float64Array:
        """Position of the tcp (3,)."""
        return self.robot_obs[:3]

    @property
    def tcp_rotation(self) -> Float64Array:
        """Orientation of the tcp as a matrix (3, 3)."""
        return euler_to_matrix(self.robot_obs[3:6])

    @property
    def gripper_closed(self) -> bool:
        return bool(self.robot_obs[14] < 0)

    def block_pose(self, block: str) -> Float64Array:
        """Return xyz and euler xyz (6,) of a block."""
        return self.scene_obs[block_slice(self.layout, block)]

    def nearest_block(self) -> str:
        return min(BLOCKS, key=lambda block: float(np.linalg.norm(self.block_pose(block)[:3] - self.tcp_m)))

    def held_block(self) -> str | None:
        """Return the block between the closed fingers, if there is one."""
        block = self.nearest_block()
        near = float(np.linalg.norm(self.block_pose(block)[:3] - self.tcp_m)) < _HELD_DISTANCE_M
        low_m, high_m = _HELD_WIDTH_M
        return block if near and self.gripper_closed and low_m < self.robot_obs[6] < high_m else None

    def place_of(self, block: str) -> str:
        """Return "drawer", "slider", "table" or, for a block on another one or in the air, "above"."""
        _, y_m, z_m = self.block_pose(block)[:3]
        if z_m < _DRAWER_BELOW_M:
            return "drawer"
        if z_m > _STACKED_ABOVE_M:
            return "above"
        return "slider" if y_m > _CABINET_Y_M else "table"

    def is_covered(self, block: str) -> bool:
        """Return whether another block lies on top of this one."""
        pose = self.block_pose(block)
        others = (self.block_pose(other) for other in BLOCKS if other != block)
        return any(np.linalg.norm(other[:2] - pose[:2]) < 0.04 and 0.02 < other[2] - pose[2] < 0.06 for other in others)

    def door_x_m(self) -> tuple[float, float]:
        low_m, high_m = self.layout.door_x_m
        return low_m - self.scene_obs[SLIDE], high_m - self.scene_obs[SLIDE]

    def open_cabinet_x_m(self) -> tuple[float, float]:
        """Return the extent of the wider part of the cabinet that the door leaves open."""
        (low_m, high_m), (door_low_m, door_high_m) = self.layout.opening_x_m, self.door_x_m()
        left, right = (low_m, min(door_low_m, high_m)), (max(door_high_m, low_m), high_m)
        return max(left, right, key=lambda part: part[1] - part[0])

    def free_table_spot(self, moved: str) -> Float64Array:
        """Return a place (3,) on the table for the centre of the block `moved`, away from all others."""
        others = [self.block_pose(block)[:2] for block in BLOCKS if block != moved]
        (low_m, high_m), _ = self.layout.table_area_m
        spots = [
            np.array([x_m, y_m])
            for x_m in np.arange(low_m + 0.02, high_m, _SPOT_STEP_M)
            for y_m in _SPOT_Y_M
            if math.dist((x_m, y_m), BASE_POSITION_M[:2]) < _SPOT_REACH_M
            and math.dist((x_m, y_m), self.layout.button_xy_m) > _BUTTON_GAP_M
        ]

        def cost(spot: Float64Array) -> float:
            crowding = sum(max(0.0, _SPOT_GAP_M - float(np.linalg.norm(spot - other))) for other in others)
            return 20.0 * crowding + float(np.linalg.norm(spot - self.tcp_m[:2]))

        best = min(spots, key=cost)
        return np.array([*best, dimensions.TABLE_TOP_M + 0.5 * dimensions.BLOCK_WIDTH_M])


POINTING_YAW_RAD: Final = math.pi / 2  # fingers open along the world x axis, as in the neutral pose


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    position_m: Float64Array  # (3,) in world coordinates
    # the gripper yaw that suits it; any multiple of `symmetry_rad` away is as good, and the one nearest to the neutral pose
    # is taken
    yaw_rad: float = POINTING_YAW_RAD
    symmetry_rad: float = math.pi  # see `yaw_rad`


AnchorFinder = Callable[[Float64Array], Anchor]  # scene_obs (24,) -> where the anchor is now


def fixed(position_m: Float64Array) -> AnchorFinder:
    """Return an anchor that stays at `position_m` (3,)."""
    anchor = Anchor(position_m)
    return lambda _: anchor


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Where the tcp goes next."""

    anchor: AnchorFinder  # what `offset_m` is measured from, as it stands when this waypoint begins
    offset_m: tuple[float, float, float]
    closed: bool  # whether the gripper is closed on the way
    tolerance_m: float = 0.01  # how near counts as reached; a via point has a large one
    dwell_steps: int = 0  # control steps to stay after reaching it
    jitter: float = 0.0  # how much of the episode's approach jitter applies, 0 to 1
    towards_base_m: float = 0.0  # horizontal shift towards the robot's base; high above the far edge the arm cannot reach
    tilt_rad: float = 0.0  # how far the fingers point outwards, away from the base; 0 is straight down
    lean_rad: float = 0.0  # the same about the axis along which the fingers open, which leaves the grip on a block as it is
    # added to the anchor's yaw as it stood when this waypoint began; None keeps the last orientation
    turn_rad: float | None = 0.0
    speed: float = 1.0  # share of the episode's speed; a block that is pushed fast slides on by itself
    watched: bool = False  # whether the attempt starts over when the anchor moves away during this waypoint
    # whether the gripper leans so that the carried block, which it may have gripped leaning, stands upright
    level: bool = False
    # the block that is held: `offset_m` then says where its centre goes, and losing it ends the attempt
    carried: str | None = None


@dataclass(frozen=True, slots=True)
class Script:
    # waypoints from the present situation to the goal; called at the start and again after every miss
    plan: Callable[[Situation], tuple[Waypoint, ...]]
    # tells from the first and the present scene state whether the task is done
    goal: Callable[[Float64Array, Float64Array], bool]
    # half-width of the random offset added to every waypoint, per axis
    grasp_jitter_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    # half-width of the random offset of via points, scaled by `Waypoint.jitter`
    approach_jitter_m: tuple[float, float, float] = (0.02, 0.02, 0.02)
    # whether a block may be in the gripper when the script begins; otherwise it is put down first
    keeps: Callable[[Situation], bool] = lambda _: False
    # whether the arm is already where the work is, so that it need not come out into the open first
    goes_on: Callable[[Situation], bool] = lambda _: False
