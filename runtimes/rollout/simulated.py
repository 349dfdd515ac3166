"""Both sides of the loop in a simulator: an expert that reads states, and an arm that rests between rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from rfedge.messages import Observation
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.control.robot import SimulatedRobot

if TYPE_CHECKING:
    from rfedge.envs import Environment
    from rfedge.envs.experts import Expert


class StandingSimulator(SimulatedRobot):
    """A simulated robot that rests by itself: its time passes with actions alone.

    So `stop` runs no step, and a rollout can go on exactly where the last one ended, as the tasks of a chain do.
    """

    def stop(self) -> None:
        """Do nothing: nothing moves until the next action."""


class ExpertController:
    """A scripted expert in a policy's place; it reads states and renders nothing.

    Args:
        expert: of the rollout's task; a new one for every rollout.
        environment: the simulator that the loop drives.
    """

    def __init__(self, expert: Expert, environment: Environment) -> None:
        self._expert = expert
        self._environment = environment

    @property
    def needs_observation(self) -> bool:
        return False

    def reset(self, instruction: str) -> None:
        """Do nothing: an expert knows one task."""

    def control(self, observation: Observation | None) -> ControlStep:
        """Return the expert's answer to the present states, in its own double precision, which a simulator gets."""
        action = self._expert.act(self._environment.robot_state(), self._environment.scene_state())
        return ControlStep(action=cast("npt.NDArray[np.float32]", action), inference=None)

    def close(self) -> None:
        """Do nothing: nothing runs beside the loop."""
