"""One episode in a simulator: an instruction, a start from which it can be done, a judge, and the rollout between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rfedge.envs import INSTRUCTIONS, Environment, TaskOracle
from rfedge.envs.language import PARAPHRASES
from rfedge.envs.tasks import check_task
from rfedge.errors import ConfigError, explain
from rfedge.runtimes.control import ControlLoop, RolloutResult, StepReport, drive

__all__ = ["Goal", "choose_goal", "run_episode"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What the policy is told and what it is judged by; without a task nobody judges."""

    instruction: str
    task: str | None


def choose_goal(task: str | None, instruction: str | None) -> Goal:
    """Complete one of the two from the other.

    A task brings its evaluation instruction unless one is given; an instruction alone brings the task it is known to
    describe, if there is one.

    Raises:
        ConfigError: both are missing, or the task is unknown; the text names the nearest one.
    """
    if task is not None:
        return Goal(instruction=instruction or INSTRUCTIONS[check_task(task)], task=task)
    if instruction is None:
        raise ConfigError(
            explain(
                "goal", got="neither", expected="--task or --instruction", remedy="Pass --task open_drawer, for instance."
            )
        )
    return Goal(instruction=instruction, task=_task_of(instruction))


def run_episode(
    loop: ControlLoop,
    environment: Environment,
    goal: Goal,
    *,
    seed: int,
    max_steps: int,
    instruction: Callable[[], str] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    observe_every_step: bool = False,
) -> RolloutResult:
    """Prepare the start, run the goal's instruction and judge it.

    Args:
        loop: the policy in its loop, which drives `environment`.
        environment: an open one; its present state does not matter.
        goal: from `choose_goal`.
        seed: decides the start.
        max_steps: control steps before giving up.
        instruction: what the policy is told, asked before every step; None is the goal's own.
        on_step: told about each step.
        observe_every_step: render every step for `on_step`.
    """
    success: Callable[[], bool] | None = None
    if goal.task is None:
        environment.restore()
    else:
        from rfedge.envs.experts import prepare

        prepare(goal.task, environment, np.random.default_rng(seed))
        success = _judge(environment, goal.task)
    return drive(
        loop,
        instruction or goal.instruction,
        max_steps=max_steps,
        success=success,
        on_step=on_step,
        observe_every_step=observe_every_step,
        seed=seed,
    )


def _judge(environment: Environment, task: str) -> Callable[[], bool]:
    oracle, start = TaskOracle(), environment.info()
    return lambda: oracle.solved(task, start, environment.info())


def _task_of(instruction: str) -> str | None:
    words = instruction.strip().lower()
    for task, evaluated in INSTRUCTIONS.items():
        if words in (known.lower() for known in (evaluated, *PARAPHRASES[task])):
            return task
    return None
