"""Ranges that a Franka Panda at CALVIN's table can report, to tell its demonstrations from those of another robot.

The limits are the arm's own, not those of a dataset, so no frame of CALVIN is beyond them. Sources: Franka's published
joint limits and link lengths; CALVIN's robot base and finger limits.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rfedge.data.frames import Array, raise_problem
from rfedge.errors import DatasetError
from rfedge.messages import STATE_SIZE

NUM_JOINTS: Final = 7
LOWER_RAD: Final = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
UPPER_RAD: Final = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
# A simulated joint is pushed a little past its stop; a wrong unit or order is off by far more.
_JOINT_MARGIN_RAD: Final = 0.05
BASE_M: Final = (-0.34, -0.46, 0.24)  # of the arm in CALVIN's world
_SHOULDER_M: Final = np.array([-0.34, -0.46, 0.573])  # BASE_M plus the first link
# Stretched out, the tcp is 0.327 + 0.393 m of links and 0.262 m of wrist, hand and finger away from the shoulder.
_REACH_M: Final = 1.0
_FLOOR_M: Final = 0.0  # a policy that errs leads the arm past the table's edge, down to the ground
_WIDTH_RANGE_M: Final = (-0.005, 0.09)  # the fingers open 0.08 m


def state_problem(robot_obs: Array) -> DatasetError | None:
    """Return why float (15,) `robot_obs` cannot be a Panda at CALVIN's table, or None; joints of 0 are unknown."""
    if robot_obs.shape != (STATE_SIZE,):
        return _problem("robot_obs", f"shape {robot_obs.shape}", f"shape {(STATE_SIZE,)}")
    joints = robot_obs[7:14]
    beyond = np.maximum(LOWER_RAD - joints, joints - UPPER_RAD)
    worst = int(beyond.argmax())
    if joints.any() and beyond[worst] > _JOINT_MARGIN_RAD:
        limits = f"{LOWER_RAD[worst]:g} to {UPPER_RAD[worst]:g} rad"
        return _problem(f"joint {worst + 1} in robot_obs", f"{joints[worst]:.3f} rad", limits)
    reach_m = float(np.linalg.norm(robot_obs[:3] - _SHOULDER_M))
    if reach_m > _REACH_M or robot_obs[2] <= _FLOOR_M:
        place = ", ".join(f"{value:.3f}" for value in robot_obs[:3])
        expected = f"within {_REACH_M:g} m of the shoulder and above {_FLOOR_M:g} m"
        return _problem("tcp in robot_obs", f"({place}) m", expected)
    low_m, high_m = _WIDTH_RANGE_M
    if not low_m <= robot_obs[6] <= high_m:
        return _problem("gripper width in robot_obs", f"{robot_obs[6]:.3f} m", "0 to 0.08 m")
    return None


def refuse_another_robot(subject: str, robot_obs: Array) -> None:
    """Raise DatasetError when `robot_obs` cannot be a Panda at CALVIN's table; `subject` names its frame."""
    raise_problem(state_problem(robot_obs), subject)


def _problem(subject: str, got: str, expected: str) -> DatasetError:
    remedy = "These demonstrations are of another robot or another world frame; the policy acts for CALVIN's Panda."
    return DatasetError(subject, got=got, expected=expected, remedy=remedy)


def from_base(positions_m: Array) -> bool:
    """Whether float (n, 3) positions are in the arm's reach only once its base is added to them."""
    here, moved = (_share_in_reach(positions_m + offset) for offset in (np.zeros(3), np.array(BASE_M)))
    return here < 0.5 and moved > 0.9


def _share_in_reach(positions_m: Array) -> float:
    reach_m = np.linalg.norm(positions_m - _SHOULDER_M, axis=1)
    return float(((reach_m <= _REACH_M) & (positions_m[:, 2] > _FLOOR_M)).mean())
