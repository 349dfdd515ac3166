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
    """A place that waypoints refer to.

    Attributes:
        position_m: (3,) in world coordinates.
        yaw_rad: the gripper yaw that suits it; any multiple of `symmetry_rad` away is as good, and the one nearest to the
            neutral pose is taken.
        symmetry_rad: see `yaw_rad`.
    """

    position_m: Float64Array
    yaw_rad: float = POINTING_YAW_RAD
    symmetry_rad: float = math.pi


AnchorFinder = Callable[[Float64Array], Anchor]  # scene_obs (24,) -> where the anchor is now


def fixed(position_m: Float64Array) -> AnchorFinder:
    """Return an anchor that stays at `position_m` (3,)."""
    anchor = Anchor(position_m)
    return lambda _: anchor


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Where the tcp goes next.

    Attributes:
        anchor: what `offset_m` is measured from, as it stands when this waypoint begins.
        closed: whether the gripper is closed on the way.
        tolerance_m: how near counts as reached; a via point has a large one.
        dwell_steps: control steps to stay after reaching it.
        jitter: how much of the episode's approach jitter applies, 0 to 1.
        towards_base_m: horizontal shift towards the robot's base; high above the far edge the arm cannot reach.
        tilt_rad: how far the fingers point outwards, away from the base; 0 is straight down.
        lean_rad: the same about the axis along which the fingers open, which leaves the grip on a block as it is.
        turn_rad: added to the anchor's yaw as it stood when this waypoint began; None keeps the last orientation.
        speed: share of the episode's speed; a block that is pushed fast slides on by itself.
        watched: whether the attempt starts over when the anchor moves away during this waypoint.
        level: whether the gripper leans so that the carried block, which it may have gripped leaning, stands upright.
        carried: the block that is held: `offset_m` then says where its centre goes, and losing it ends the attempt.
    """

    anchor: AnchorFinder
    offset_m: tuple[float, float, float]
    closed: bool
    tolerance_m: float = 0.01
    dwell_steps: int = 0
    jitter: float = 0.0
    towards_base_m: float = 0.0
    tilt_rad: float = 0.0
    lean_rad: float = 0.0
    turn_rad: float | None = 0.0
    speed: float = 1.0
    watched: bool = False
    level: bool = False
    carried: str | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """One way to do a task.

    Attributes:
        plan: waypoints from the present situation to the goal; called at the start and again after every miss.
        goal: tells from the first and the present scene state whether the task is done.
        grasp_jitter_m: half-width of the random offset added to every waypoint, per axis.
        approach_jitter_m: half-width of the random offset of via points, scaled by `Waypoint.jitter`.
        keeps: whether a block may be in the gripper when the script begins; otherwise it is put down first.
        goes_on: whether the arm is already where the work is, so that it need not come out into the open first.
    """

    plan: Callable[[Situation], tuple[Waypoint, ...]]
    goal: Callable[[Float64Array, Float64Array], bool]
    grasp_jitter_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    approach_jitter_m: tuple[float, float, float] = (0.02, 0.02, 0.02)
    keeps: Callable[[Situation], bool] = lambda _: False
    goes_on: Callable[[Situation], bool] = lambda _: False
