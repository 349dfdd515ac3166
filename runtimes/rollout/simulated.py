"""Both sides of the loop in a simulator: an expert that reads states, and an arm that rests between rollouts."""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from rfedge.messages import Observation
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.control.robot import SimulatedRobot

Float64Array = npt.NDArray[np.float64]


class StandingSimulator(SimulatedRobot):
    """A simulated robot that rests by itself: its time passes with actions alone.

    So `stop` runs no step, and a rollout can go on exactly where the last one ended, as the tasks of a chain do.
    """

    def stop(self) -> None:
        """Do nothing: nothing moves until the next action."""


class _Expert(Protocol):
    """The part of `rfedge.envs.experts.Expert` that acts."""

    def act(self, robot_obs: Float64Array, scene_obs: Float64Array) -> Float64Array:
        """Return the action (7,) for robot_obs (15,) and scene_obs (24,)."""


class _States(Protocol):
    """The part of `rfedge.envs.Environment` that an expert reads."""

    def robot_state(self) -> Float64Array:
        """Return robot_obs, float64 (15,)."""

    def scene_state(self) -> Float64Array:
        """Return scene_obs, float64 (24,)."""


class ExpertController:
    """A scripted expert in a policy's place; it reads states and renders nothing.

    Args:
        expert: of the rollout's task; a new one for every rollout.
        states: of the simulator that the loop drives.
    """

    def __init__(self, expert: _Expert, states: _States) -> None:
        self._expert = expert
        self._states = states

    @property
    def needs_observation(self) -> bool:
        return False

    def reset(self, instruction: str) -> None:
        """Do nothing: an expert knows one task."""

    def control(self, observation: Observation | None) -> ControlStep:
        """Return the expert's answer to the present states, in its own double precision, which a simulator gets."""
        action = self._expert.act(self._states.robot_state(), self._states.scene_state())
        return ControlStep(action=cast("npt.NDArray[np.float32]", action), inference=None)

    def close(self) -> None:
        """Do nothing: nothing runs beside the loop."""
