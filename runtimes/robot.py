"""What the loop drives: three calls that a simulator, a recorded episode and a real arm can all offer."""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rfedge.messages import GRIPPER_CLOSE, GRIPPER_OPEN, POSE_SIZE, Observation
from rfedge.runtimes.safety import hold_action

__all__ = ["Plant", "Robot", "SimulatedRobot"]


class Robot(Protocol):
    """One arm with two cameras.

    `stop` may be called from another thread while `observe` or `apply` is not running, and more than once.
    """

    def observe(self) -> Observation:
        """Return the present frame of both cameras and, if known, the robot's state; the caller keeps the arrays."""

    def apply(self, action: npt.NDArray[np.float32]) -> None:
        """Send one control step of a relative action (7,): finite, clamped, gripper -1 or 1."""

    def stop(self) -> None:
        """Command zero motion and keep the gripper as it is."""


class Plant(Protocol):
    """The part of `rfedge.envs.Environment` that `SimulatedRobot` needs."""

    def observe(self) -> Observation:
        """Render both cameras at the present state."""

    def advance(self, action: npt.NDArray[np.float64]) -> None:
        """Run one control step of a relative action (7,)."""


class SimulatedRobot:
    """A robot in a simulator, such as PlayTable or CALVIN, whose time passes with each action.

    Args:
        plant: the environment, in the state where the episode begins.
    """

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._lock = threading.Lock()  # a watchdog stops it from its own thread
        self._gripper: float | None = None

    def observe(self) -> Observation:
        """Render both cameras."""
        with self._lock:
            observation = self._plant.observe()
        if self._gripper is None and observation.state is not None:
            self._gripper = GRIPPER_OPEN if observation.state[-1] > 0 else GRIPPER_CLOSE
        return observation

    def apply(self, action: npt.NDArray[np.float32]) -> None:
        """Run one control step."""
        with self._lock:
            self._gripper = float(action[POSE_SIZE])
            self._plant.advance(action.astype(np.float64))

    def stop(self) -> None:
        """Run one control step of zero motion; before the first frame or action there is nothing to stop."""
        with self._lock:
            if self._gripper is not None:
                self._plant.advance(hold_action(self._gripper).astype(np.float64))
