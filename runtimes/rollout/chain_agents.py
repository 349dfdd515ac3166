"""What acts in a task: a scripted expert, or a policy; each is a controller in the same loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rfedge.envs.experts import make_expert
from rfedge.envs.interface import Environment
from rfedge.runtimes.control.modes import Controller
from rfedge.runtimes.rollout import ExpertController, Goal


@dataclass(frozen=True, slots=True)
class Subtask(Goal):
    """One task and its instruction; a policy may look at the instruction only.

    Attributes:
        seed: for whatever the agent samples; it follows from the run's seed and the place of the task alone.
    """

    task: str
    seed: int


# Gives what drives the environment in a subtask. What it does there must not depend on the subtasks before it, other than
# through the state of the environment.
Agent = Callable[[Subtask, Environment], Controller]


def expert_agent() -> Agent:
    """Return the scripted expert of each task; it reads states and renders nothing."""
    return act_as_expert


def act_as_expert(subtask: Subtask, environment: Environment) -> Controller:
    """Return the task's expert in the environment."""
    rng = np.random.default_rng(subtask.seed)
    return ExpertController(make_expert(subtask.task, environment.scene, rng), environment)
