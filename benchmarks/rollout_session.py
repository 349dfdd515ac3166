"""One environment and one agent of a process, and how the agent works on a task until the oracle sees it done."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rfedge.benchmarks.chain_agents import Agent, Subtask, TimedAgent
from rfedge.benchmarks.chain_report import SubtaskRecord
from rfedge.envs import Environment, TaskOracle, make_environment
from rfedge.envs.interface import Float64Array
from rfedge.messages import POSE_SIZE

__all__ = ["RolloutSession", "RolloutSetup", "Simulator", "World", "close_session", "open_session"]


class World(Protocol):
    """Opens environments: one in every process that runs tasks. Hashable, and picklable for more than one worker."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def scene(self) -> str:
        """Name of the table layout."""

    def open(self) -> Environment:
        """Return a new environment."""


@dataclass(frozen=True, slots=True)
class Simulator:
    """A known environment.

    Attributes:
        name: for `rfedge.envs.make_environment`.
        scene: "A" to "D"; CALVIN's benchmark is scene D.
        render: False leaves out the cameras, for an agent that reads states.
    """

    name: str = "playtable"
    scene: str = "D"
    render: bool = True

    def open(self) -> Environment:
        """Make it.

        Raises:
            ConfigError: name or scene is unknown.
            BackendUnavailableError: its simulator or renderer is not on this machine.
        """
        return make_environment(self.name, scene=self.scene, render=self.render)


@dataclass(frozen=True, slots=True)
class RolloutSetup:
    """What a process needs to run tasks; `max_steps` are control steps for each."""

    make_agent: Callable[[], Agent]
    world: World
    max_steps: int


class RolloutSession:
    """One environment and one agent, opened when they are first needed: a finished run needs neither."""

    def __init__(self, setup: RolloutSetup) -> None:
        self._setup = setup
        self._oracle = TaskOracle()

    @functools.cached_property
    def environment(self) -> Environment:
        """The environment, open."""
        return self._setup.world.open()

    @functools.cached_property
    def _agent(self) -> Agent:
        return self._setup.make_agent()

    def roll_out(self, subtask: Subtask) -> SubtaskRecord:
        """Let the agent work on a task from the present state, until it is done or out of steps."""
        environment, agent = self.environment, self._agent
        agent.begin(subtask, environment)
        start = environment.info()
        actions: list[Float64Array] = []
        solved = False
        while not solved and len(actions) < self._setup.max_steps:
            actions.append(agent.act(environment))
            environment.advance(actions[-1])
            solved = self._oracle.solved(subtask.task, start, environment.info())
        jerks = np.diff(np.stack(actions)[:, :POSE_SIZE], n=2, axis=0)
        return SubtaskRecord(
            task=subtask.task,
            instruction=subtask.instruction,
            success=solved,
            num_steps=len(actions),
            jerk_square_sum=float(np.square(jerks).sum()),
            call_ms=agent.call_ms if isinstance(agent, TimedAgent) else None,
        )

    def close(self) -> None:
        """Close the environment, if it was opened."""
        if "environment" in vars(self):
            self.environment.close()


_open: dict[RolloutSetup, RolloutSession] = {}


def open_session(setup: RolloutSetup) -> RolloutSession:
    """Return this process's session for `setup`, and close one that was open for another.

    Building a scene and loading a policy cost more than many tasks, so a worker keeps them from job to job; one that goes
    on with another policy must not keep both.
    """
    if setup not in _open:
        close_session()
        _open[setup] = RolloutSession(setup)
    return _open[setup]


def close_session() -> None:
    """Close this process's session, if there is one."""
    while _open:
        _open.popitem()[1].close()
