"""Measures the scripted experts: how often and how fast each does its task from random starts."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from rfedge.benchmarks.machine import Measurement, circumstances
from rfedge.benchmarks.plan import check_least
from rfedge.benchmarks.record import Record
from rfedge.benchmarks.statistics import Proportion, proportion
from rfedge.envs import Environment, make_environment
from rfedge.envs.demonstrations import MAX_FRAMES
from rfedge.envs.experts import EXPERT_TASKS, ExpertScore, score_expert
from rfedge.envs.tasks import check_task
from rfedge.errors import GateError, explain
from rfedge.workers import run_jobs

__all__ = ["ExpertSuccessPlan", "ExpertSuccessReport", "ExpertTaskScore", "assert_success", "run_expert_success"]

EXPERT_SUCCESS_SCHEMA_VERSION: Final = 1
# What the project asks of its experts: nearly always on most tasks, and on none rarely.
MOST_TASKS: Final = 30
MOST_RATE: Final = 0.95
LEAST_RATE: Final = 0.80


@dataclass(frozen=True)
class ExpertSuccessPlan:
    """What to run.

    Attributes:
        env: a name that `make_environment` knows.
        scene: "A" to "D".
        tasks: names; empty is all of them.
        episodes: starts per task, with seeds `seed`, `seed` + 1, ...
        anywhere: whether blocks start anywhere in CALVIN's area, or where one window of 64 frames is enough; see
            `rfedge.envs.experts.prepare`.
        limit_steps: control steps per start; CALVIN's evaluation allows 360.
    """

    env: str = "playtable"
    scene: str = "D"
    tasks: tuple[str, ...] = EXPERT_TASKS
    episodes: int = 50
    limit_steps: int = 360
    seed: int = 0
    anywhere: bool = False

    def __post_init__(self) -> None:
        """Refuse a plan that runs nothing.

        Raises:
            ConfigError: no episode, no step, no task or an unknown one.
        """
        numbers = {"episodes": self.episodes, "limit_steps": self.limit_steps, "tasks": len(self.tasks)}
        check_least(1, numbers, remedy="Ask for more.")
        for task in self.tasks:
            check_task(task)


class ExpertTaskScore(Record):
    """One task.

    Attributes:
        success: share of the starts that were solved, with Wilson's 95 % interval.
        within_window: how many were solved within 64 control steps, the longest window that CALVIN annotates.
        median_steps: control steps of the successes; None without one.
        failed_seeds: seeds of the starts that were not solved.
    """

    success: Proportion
    within_window: int
    median_steps: float | None
    failed_seeds: tuple[int, ...]


class ExpertSuccessReport(Measurement):
    """The whole document."""

    format: Literal["rfedge-expert-success"] = "rfedge-expert-success"
    schema_version: int = EXPERT_SUCCESS_SCHEMA_VERSION
    environment: str
    scene: str
    episodes: int
    limit_steps: int
    seed: int
    anywhere: bool
    tasks: dict[str, ExpertTaskScore]
    wall_seconds: float

    @property
    def num_nearly_always(self) -> int:
        """Tasks that were solved in at least 95 % of the starts."""
        return sum(score.success.value >= MOST_RATE for score in self.tasks.values())


def run_expert_success(
    plan: ExpertSuccessPlan, *, workers: int = 1, on_task: Callable[[int, int], None] | None = None
) -> ExpertSuccessReport:
    """Run every task's expert from its starts, without rendering.

    Args:
        plan: what to run.
        workers: processes; the result does not depend on it.
        on_task: told (tasks done, tasks in all).

    Raises:
        ConfigError: environment or scene is unknown.
        BackendUnavailableError: the simulator is missing.
    """
    started_s = time.perf_counter()
    scores: dict[str, ExpertScore] = {}
    for task, score in run_jobs(functools.partial(_score, plan), plan.tasks, workers):
        scores[task] = score
        if on_task is not None:
            on_task(len(scores), len(plan.tasks))
    return ExpertSuccessReport(
        **circumstances(),
        environment=plan.env,
        scene=plan.scene,
        episodes=plan.episodes,
        limit_steps=plan.limit_steps,
        seed=plan.seed,
        anywhere=plan.anywhere,
        tasks={task: _summarise(scores[task], plan.seed) for task in plan.tasks},
        wall_seconds=time.perf_counter() - started_s,
    )


def assert_success(report: ExpertSuccessReport) -> None:
    """Check that at least 30 tasks are solved in 95 % of their starts, and every one in 80 %.

    Fewer than 30 measured tasks must all reach 95 %.

    Raises:
        GateError: one of the two does not hold; the text has the numbers.
    """
    rates = {task: score.success.value for task, score in report.tasks.items()}
    worst = min(rates, key=lambda task: rates[task])
    if report.num_nearly_always < min(MOST_TASKS, len(rates)) or rates[worst] < LEAST_RATE:
        raise GateError(
            explain(
                f"experts in scene {report.scene}",
                got=f"{report.num_nearly_always} of {len(rates)} tasks at {MOST_RATE:.0%}, {worst} at {rates[worst]:.0%}",
                expected=f"{min(MOST_TASKS, len(rates))} at {MOST_RATE:.0%} and every one at {LEAST_RATE:.0%}",
                remedy="Run the seeds that failed one by one.",
            )
        )


@functools.cache  # one per process: building a scene costs more than many episodes' physics
def _environment(env: str, scene: str) -> Environment:
    return make_environment(env, scene=scene, render=False)


def _score(plan: ExpertSuccessPlan, task: str) -> ExpertScore:
    seeds = range(plan.seed, plan.seed + plan.episodes)
    environment = _environment(plan.env, plan.scene)
    return score_expert(task, environment, seeds, limit_steps=plan.limit_steps, anywhere=plan.anywhere)


def _summarise(score: ExpertScore, first_seed: int) -> ExpertTaskScore:
    return ExpertTaskScore(
        success=proportion(score.solved, len(score.steps)),
        within_window=sum(step is not None and step <= MAX_FRAMES for step in score.steps),
        median_steps=score.median_steps if score.solved else None,
        failed_seeds=tuple(first_seed + index for index, step in enumerate(score.steps) if step is None),
    )
