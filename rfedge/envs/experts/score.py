"""Measures how often and how fast an expert does its task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rfedge.envs.experts.engine import Expert
from rfedge.envs.experts.preparation import prepare
from rfedge.envs.experts.scripts import make_expert
from rfedge.envs.interface import Environment
from rfedge.envs.oracle import TaskOracle
from rfedge.envs.tasks import TASKS, check_task

__all__ = ["ExpertScore", "prepare_start", "score_expert"]


@dataclass(frozen=True, slots=True)
class ExpertScore:
    """What one expert did from several random starts.

    Attributes:
        task: one of the 34 tasks.
        scene: "A" to "D".
        steps: for every start the control steps until the oracle saw the task done, or None when it never did.
    """

    task: str
    scene: str
    steps: tuple[int | None, ...]

    @property
    def solved(self) -> int:
        """How many starts ended in success."""
        return sum(step is not None for step in self.steps)

    @property
    def median_steps(self) -> float:
        """Median control steps of the successes; not a number when there is none."""
        return float(np.median([float(step) for step in self.steps if step is not None] or [np.nan]))

    @property
    def success_rate(self) -> float:
        """Share of starts that ended in success."""
        return self.solved / len(self.steps)


def score_expert(
    task: str, environment: Environment, seeds: Iterable[int], *, limit_steps: int = 120, anywhere: bool = False
) -> ExpertScore:
    """Run the expert of `task` once a seed, without rendering, for at most `limit_steps` control steps.

    `anywhere` is explained in `prepare`.

    Raises:
        ConfigError: the task is unknown or has no expert.
    """
    check_task(task)
    steps = tuple(_run(task, environment, seed, limit_steps, anywhere=anywhere) for seed in seeds)
    return ExpertScore(task, environment.scene, steps)


def prepare_start(task: str, environment: Environment, seed: int, *, anywhere: bool = False) -> Expert:
    """Restore `environment` to the start number `seed` of `task`, and return the expert that is scored from there.

    Raises:
        ConfigError: the task is unknown or has no expert.
    """
    rng = np.random.default_rng([TASKS.index(check_task(task)), seed])
    expert = make_expert(task, environment.scene, rng)
    prepare(task, environment, rng, anywhere=anywhere)
    return expert


def _run(task: str, environment: Environment, seed: int, limit_steps: int, *, anywhere: bool) -> int | None:
    oracle = TaskOracle()
    expert = prepare_start(task, environment, seed, anywhere=anywhere)
    start = environment.info()
    for step in range(1, limit_steps + 1):
        environment.advance(expert.act(environment.robot_state(), environment.scene_state()))
        if oracle.solved(task, start, environment.info()):
            return step
    return None
