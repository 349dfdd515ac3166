"""The start of a rollout in a simulator: an instruction, a state from which it can be done, and a check of success."""

from __future__ import annotations

from collections.abc import Callable

from rfedge.envs import INSTRUCTIONS, Environment, task_solved
from rfedge.envs.experts import prepare_start
from rfedge.envs.language import PARAPHRASES
from rfedge.envs.tasks import check_task
from rfedge.errors import ConfigError
from rfedge.runtimes.rollout import Goal


def choose_goal(task: str | None, instruction: str | None) -> Goal:
    """Complete one of the two: a task brings its evaluation instruction, an instruction the task it is known to describe."""
    if task is not None:
        return Goal(instruction=instruction or INSTRUCTIONS[check_task(task)], task=task)
    if instruction is None:
        raise ConfigError(
            "goal", got="neither", expected="--task or --instruction", remedy="Pass --task open_drawer, for instance."
        )
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
