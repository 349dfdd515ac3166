"""What acts in a chain: a scripted expert, or a policy in its control loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from rfedge.envs.experts import Expert, make_expert
from rfedge.envs.interface import Environment, Float64Array
from rfedge.errors import ConfigError, explain
from rfedge.runtimes.modes import Controller
from rfedge.runtimes.safety import guard_action

__all__ = ["Agent", "ControllerAgent", "ExpertAgent", "Subtask", "TimedAgent"]


@dataclass(frozen=True, slots=True)
class Subtask:
    """One task of a chain, as its agent is told.

    Attributes:
        chain: index of the chain.
        position: place in the chain, from 0.
        task: one of the 34; a policy may look at the instruction only.
        instruction: plain words.
        seed: for whatever the agent draws; it depends on the run's seed, chain and position alone.
    """

    chain: int
    position: int
    task: str
    instruction: str
    seed: int


class Agent(Protocol):
    """Acts in an environment, one subtask after the other.

    It asks the environment for what it needs: states, or rendered frames. What it does in a subtask must not depend on
    the subtasks before it, other than through the state of the environment.
    """

    def begin(self, subtask: Subtask, environment: Environment) -> None:
        """Forget everything and work on `subtask` from now on."""

    def act(self, environment: Environment) -> Float64Array:
        """Return the next action (7,), pose within [-1, 1] and gripper -1 or 1."""


@runtime_checkable
class TimedAgent(Protocol):
    """An agent that times itself."""

    @property
    def call_ms(self) -> tuple[float, ...]:
        """Milliseconds of every policy call since `begin`."""


class ExpertAgent:
    """The scripted expert of each task; it reads states and renders nothing."""

    def __init__(self) -> None:
        """Wait for the first subtask."""
        self._expert: Expert | None = None

    def begin(self, subtask: Subtask, environment: Environment) -> None:
        """Take the task's expert.

        Raises:
            ConfigError: the task has none.
        """
        self._expert = make_expert(subtask.task, environment.scene, np.random.default_rng(subtask.seed))

    def act(self, environment: Environment) -> Float64Array:
        """Return the expert's answer to the present states."""
        if self._expert is None:
            raise ConfigError(explain("agent", got="no subtask", expected="begin before act", remedy="Call begin first."))
        return self._expert.act(environment.robot_state(), environment.scene_state())


class ControllerAgent:
    """A policy in its control loop; it sees frames and the instruction, and neither states nor the task's name."""

    def __init__(self, controller: Controller) -> None:
        """Drive `controller`, see `rfedge.runtimes.controllers.make_controller`."""
        self._controller = controller
        self._call_ms: list[float] = []

    @property
    def call_ms(self) -> tuple[float, ...]:
        return tuple(self._call_ms)

    def begin(self, subtask: Subtask, environment: Environment) -> None:
        """Reset the policy with the instruction."""
        self._call_ms = []
        self._controller.reset(subtask.instruction)

    def act(self, environment: Environment) -> Float64Array:
        """Return the policy's action, clamped; a frame is rendered only when the policy looks at it.

        Raises:
            ContractError: the policy refuses the frame or its action is not finite.
        """
        observation = environment.observe() if self._controller.needs_observation else None
        control = self._controller.control(observation)
        if control.inference is not None and "total" in control.inference.timings_ms:
            self._call_ms.append(round(control.inference.timings_ms["total"], 3))
        return guard_action(control.action).astype(np.float64)
