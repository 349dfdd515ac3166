"""Interface of what the loop drives: three calls that a simulator, a recorded episode and a real arm can all offer."""

from __future__ import annotations

import threading
from typing import Final, Protocol, runtime_checkable

import numpy as np

from rfedge.arrays import Float32, Float64
from rfedge.messages import GRIPPER_CLOSE, GRIPPER_KEEP, GRIPPER_OPEN, POSE_SIZE, Observation
from rfedge.robot.conventions import Conventions
from rfedge.runtimes.control.safety import hold_action

__all__ = ["HeartbeatRobot", "Plant", "Robot", "SimulatedRobot"]

# A simulator that is busy for longer hangs.
_STOP_WAIT_S: Final = 1.0


class Robot(Protocol):
    """One arm with two cameras.

    `stop` may be called from another thread at any time, also while `observe` or `apply` hangs, and more than once. It must
    not wait for them: give it a connection or a lock of its own.
    """

    def observe(self) -> Observation:
        """Return the present frame of both cameras and, if known, the robot's state; the caller keeps the arrays."""

    def apply(self, action: Float32) -> None:
        """Send one control step of a relative action (7,): finite, clamped, gripper -1 (close), 1 (open) or 0.

        0 is no gripper command: nobody knows yet what the gripper does, and it may hold something.
        """

    def stop(self) -> None:
        """Command zero motion and keep the gripper as it is."""


@runtime_checkable
class HeartbeatRobot(Protocol):
    """A robot that rests by itself when no action comes: in its controller, its driver or a process of its own.

    It needs neither the loop nor its watchdog, so it outlives a killed process; see `rfedge.runtimes.control.heartbeat`.
    """

    def expect_actions(self, within_s: float) -> None:
        """From the first action on, rest whenever none has come for `within_s` seconds; called before a run."""


class Plant(Protocol):
    """The part of `rfedge.envs.Environment` that `SimulatedRobot` needs."""

    def observe(self) -> Observation:
        """Render both cameras at the present state."""

    def advance(self, action: Float64) -> None:
        """Run one control step of a relative action (7,)."""


@runtime_checkable
class TimedPlant(Protocol):
    """A plant that says how long its control step is."""

    @property
    def control_hz(self) -> float:
        """Control steps per second of its own time."""


class SimulatedRobot:
    """A robot in a simulator, such as PlayTable or CALVIN, whose time passes with each action."""

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._lock = threading.Lock()  # a watchdog stops it from its own thread
        self._gripper: float | None = None

    @property
    def conventions(self) -> Conventions:
        """The rate of the plant's own time; its cameras are square."""
        return Conventions(float(self._plant.control_hz) if isinstance(self._plant, TimedPlant) else None)

    def observe(self) -> Observation:
        with self._lock:
            return self._observe()

    def apply(self, action: Float32) -> None:
        """Run one control step; one without a gripper command keeps the gripper as the simulator reports it."""
        with self._lock:
            if action[POSE_SIZE] != GRIPPER_KEEP:
                self._gripper = float(action[POSE_SIZE])
            elif self._gripper is None:
                self._observe()
            if self._gripper is not None:
                self._plant.advance(np.append(action[:POSE_SIZE], self._gripper).astype(np.float64))

    def stop(self) -> None:
        """Run one control step of zero motion; nothing before the first frame or action, nor while the simulator hangs."""
        if not self._lock.acquire(timeout=_STOP_WAIT_S):
            return
        try:
            if self._gripper is not None:
                self._plant.advance(hold_action(self._gripper).astype(np.float64))
        finally:
            self._lock.release()

    def _observe(self) -> Observation:
        observation = self._plant.observe()
        if self._gripper is None and observation.state is not None and observation.state[-1] != GRIPPER_KEEP:
            self._gripper = GRIPPER_OPEN if observation.state[-1] > 0 else GRIPPER_CLOSE
        return observation
