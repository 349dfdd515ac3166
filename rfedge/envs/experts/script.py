"""The vocabulary in which experts are written: anchors, waypoints around them, and scripts that plan waypoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rfedge.envs.experts.situation import Situation
from rfedge.envs.interface import Float64Array

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
