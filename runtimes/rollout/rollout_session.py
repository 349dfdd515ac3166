"""Tasks in a simulator: their starts and checks, the agents that act, and the environment that a process keeps for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rfedge.envs import INSTRUCTIONS, Environment, make_environment, task_solved
from rfedge.envs.experts import make_expert, prepare_start
from rfedge.envs.interface import EnvironmentIdentity
from rfedge.envs.language import PARAPHRASES
from rfedge.envs.looks import Looks, Renderer
from rfedge.envs.tasks import check_task
from rfedge.errors import ConfigError
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import Controller
from rfedge.runtimes.control.safety import SafetyGuard, SafetyLimits
from rfedge.runtimes.rollout import ExpertController, Goal, RolloutRecord, StandingSimulator, roll_out


def choose_goal(task: str | None, instruction: str | None) -> Goal:
    """Complete one of the two: a task brings its evaluation instruction, an instruction the task it is known to describe."""
    if task is not None:
        return Goal(instruction=instruction or INSTRUCTIONS[check_task(task)], task=task)
    if instruction is None:
        remedy = "Pass --task open_drawer, for instance."
        raise ConfigError("goal", got="neither", expected="--task or --instruction", remedy=remedy)
    return Goal(instruction=instruction, task=_task_of(instruction))


def begin_episode(environment: Environment, goal: Goal, seed: int) -> Callable[[], bool] | None:
    """Prepare the start number `seed` and return its check of success; without a task a random state, and None."""
    if goal.task is None:
        environment.restore()
        return None
    prepare_start(goal.task, environment, seed)
    return success_check(environment, goal.task)


def success_check(environment: Environment, task: str) -> Callable[[], bool]:
    """Return what says whether `task` has been done since now."""
    start = environment.info()
    return lambda: task_solved(task, start, environment.info())


def _task_of(instruction: str) -> str | None:
    words = instruction.strip().lower()
    for task, evaluated in INSTRUCTIONS.items():
        if words in (known.lower() for known in (evaluated, *PARAPHRASES[task])):
            return task
    return None


@dataclass(frozen=True, slots=True)
class Subtask(Goal):
    """One task and its instruction; a policy may look at the instruction only."""

    task: str
    seed: int  # for whatever the agent samples; it follows from the run's seed and the place of the task alone


# Gives what drives the environment in a subtask. What it does there must not depend on the subtasks before it, other than
# through the state of the environment.
Agent = Callable[[Subtask, Environment], Controller]


def expert_agent() -> Agent:
    """Return the scripted expert of each task; it reads states and renders nothing."""
    return act_as_expert


def act_as_expert(subtask: Subtask, environment: Environment) -> Controller:
    rng = np.random.default_rng(subtask.seed)
    return ExpertController(make_expert(subtask.task, environment.scene, rng), environment)


@dataclass(frozen=True, slots=True)
class Simulator:
    """Opens a known environment, one in every process that runs tasks."""

    name: str = "playtable"
    scene: str = "D"  # "A" to "D"; CALVIN's benchmark is scene D
    render: bool = True  # False leaves out the cameras, for an agent that reads states
    looks: Looks | None = None
    renderer: Renderer | None = None

    def open(self) -> Environment:
        """Make it; errors as those of `make_environment`."""
        return make_environment(self.name, looks=self.looks, renderer=self.renderer, scene=self.scene, render=self.render)


@dataclass(frozen=True, slots=True)
class RolloutSetup:
    """Everything that a process needs to run tasks."""

    make_agent: Callable[[], Agent]
    world: Simulator
    max_steps: int  # control steps for each task
    limits: SafetyLimits = field(default_factory=SafetyLimits)  # what the actions are held to
    environment: EnvironmentIdentity | None = None  # what earlier rollouts of the run were made in; None for the first


class RolloutSession:
    """One environment and one agent, opened when they are first needed: a finished run needs neither."""

    identity: EnvironmentIdentity  # of the environment, once it is open

    def __init__(self, setup: RolloutSetup) -> None:
        self._setup = setup

    @functools.cached_property
    def environment(self) -> Environment:
        environment = self._setup.world.open()
        try:
            self.identity = EnvironmentIdentity.of(self._setup.world.name, environment).check_same(self._setup.environment)
        except BaseException:
            environment.close()
            raise
        return environment

    @functools.cached_property
    def _agent(self) -> Agent:
        return self._setup.make_agent()

    def roll_out(self, subtask: Subtask, *, seed: int | None = None) -> RolloutRecord:
        """Let the agent work on a task from the present state, start number `seed`, until it is done or out of steps."""
        environment = self.environment
        loop = ControlLoop(
            self._agent(subtask, environment), StandingSimulator(environment), guard=SafetyGuard(self._setup.limits)
        )
        success = success_check(environment, subtask.task)
        return roll_out(loop, subtask, max_steps=self._setup.max_steps, success=success, seed=seed).record

    def close(self) -> None:
        if "environment" in vars(self):
            self.environment.close()


# Building a scene and loading a policy cost more than many tasks, so a worker keeps them from job to job; one that goes on
# with another policy must not keep both.
_open: dict[RolloutSetup, RolloutSession] = {}


def open_session(setup: RolloutSetup) -> RolloutSession:
    """Return this process's session for `setup`, and close one that was open for another."""
    if setup not in _open:
        close_session()
        _open[setup] = RolloutSession(setup)
    return _open[setup]


def close_session() -> None:
    while _open:
        _open.popitem()[1].close()
