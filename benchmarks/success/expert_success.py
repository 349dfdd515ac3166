"""Measures the scripted experts: how often and how fast each does its task from random starts."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from rfedge.benchmarks.success.demonstrations import MAX_FRAMES
from rfedge.envs import INSTRUCTIONS, Environment, make_environment
from rfedge.envs.experts import EXPERT_TASKS, prepare_start
from rfedge.envs.tasks import check_task
from rfedge.errors import GateError
from rfedge.jobs.processes import run_jobs
from rfedge.jobs.progress import Count
from rfedge.records.machine import Measurement, provenance
from rfedge.records.plan import check_least
from rfedge.records.record import Record
from rfedge.records.statistics import Proportion, proportion
from rfedge.runtimes.control.limits import MAX_STEPS
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.rollout import ExpertController, Goal, RolloutRecord, StandingSimulator, roll_out
from rfedge.runtimes.rollout.rollout_session import success_check

# What the project asks of its experts: nearly always on most tasks, and on none rarely.
MOST_TASKS: Final = 30
MOST_RATE: Final = 0.95
LEAST_RATE: Final = 0.80


@dataclass(frozen=True)
class ExpertSuccessPlan:
    env: str = "playtable"  # a name that `make_environment` knows
    scene: str = "D"  # "A" to "D"
    tasks: tuple[str, ...] = EXPERT_TASKS  # names; empty is all of them
    episodes: int = 50  # starts per task, with seeds `seed`, `seed` + 1, ..
    limit_steps: int = MAX_STEPS
    seed: int = 0
    # whether blocks start anywhere in CALVIN's area, or where one window of 64 frames is enough; see
    # `rfedge.envs.experts.prepare`
    anywhere: bool = False

    def __post_init__(self) -> None:
        numbers = {"episodes": self.episodes, "limit_steps": self.limit_steps, "tasks": len(self.tasks)}
        check_least(1, numbers, remedy="Ask for more.")
        for task in self.tasks:
            check_task(task)


class ExpertTaskScore(Record):
    success: Proportion  # share of the starts that were solved, with Wilson's 95 % interval
    within_window: int  # how many were solved within 64 control steps, the longest window that CALVIN annotates
    median_steps: float | None  # control steps of the successes; None without one
    failed_seeds: tuple[int, ...]  # seeds of the starts that were not solved


class ExpertSuccessReport(Measurement):
    format: Literal["rfedge-expert-success"] = "rfedge-expert-success"
    schema_version: int = 1
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
    plan: ExpertSuccessPlan, *, workers: int = 1, on_task: Count = lambda *_: None
) -> ExpertSuccessReport:
    """Run every task's expert from its starts, without rendering; the number of workers changes no result.

    Raises:
        ConfigError: environment or scene is unknown.
        BackendUnavailableError: the simulator is missing.
    """
    started_s = time.perf_counter()
    rollouts: dict[str, tuple[RolloutRecord, ...]] = {}
    for task, found in run_jobs(functools.partial(_roll_out, plan), plan.tasks, workers):
        rollouts[task] = found
        on_task(len(rollouts), len(plan.tasks))
    return ExpertSuccessReport(
        **provenance(),
        environment=plan.env,
        scene=plan.scene,
        episodes=plan.episodes,
        limit_steps=plan.limit_steps,
        seed=plan.seed,
        anywhere=plan.anywhere,
        tasks={task: _summarise(rollouts[task]) for task in plan.tasks},
        wall_seconds=time.perf_counter() - started_s,
    )


def assert_success(report: ExpertSuccessReport) -> None:
    """Raise GateError unless 30 tasks, or all of fewer, are solved in 95 % of their starts, and every one in 80 %."""
    rates = {task: score.success.value for task, score in report.tasks.items()}
    worst = min(rates, key=lambda task: rates[task])
    if report.num_nearly_always < min(MOST_TASKS, len(rates)) or rates[worst] < LEAST_RATE:
        raise GateError(
            f"experts in scene {report.scene}",
            got=f"{report.num_nearly_always} of {len(rates)} tasks at {MOST_RATE:.0%}, {worst} at {rates[worst]:.0%}",
            expected=f"{min(MOST_TASKS, len(rates))} at {MOST_RATE:.0%} and every one at {LEAST_RATE:.0%}",
            remedy="Run the seeds that failed one by one.",
        )


@functools.cache  # one per process: building a scene costs more than many episodes' physics
def _environment(env: str, scene: str) -> Environment:
    return make_environment(env, scene=scene, render=False)


def roll_out_expert(
    task: str, environment: Environment, seed: int, *, max_steps: int = MAX_STEPS, anywhere: bool = False
) -> RolloutRecord:
    """Run the expert of `task` from its start number `seed`; for `anywhere` see `rfedge.envs.experts.prepare`."""
    expert = prepare_start(task, environment, seed, anywhere=anywhere)
    loop = ControlLoop(ExpertController(expert, environment), StandingSimulator(environment))
    goal = Goal(INSTRUCTIONS[task], task)
    return roll_out(loop, goal, max_steps=max_steps, success=success_check(environment, task), seed=seed).record


def _roll_out(plan: ExpertSuccessPlan, task: str) -> tuple[RolloutRecord, ...]:
    environment = _environment(plan.env, plan.scene)
    return tuple(
        roll_out_expert(task, environment, seed, max_steps=plan.limit_steps, anywhere=plan.anywhere)
        for seed in range(plan.seed, plan.seed + plan.episodes)
    )


def _summarise(rollouts: Sequence[RolloutRecord]) -> ExpertTaskScore:
    solved = [rollout.num_steps for rollout in rollouts if rollout.success]
    return ExpertTaskScore(
        success=proportion(len(solved), len(rollouts)),
        within_window=sum(num_steps <= MAX_FRAMES for num_steps in solved),
        median_steps=float(np.median(solved)) if solved else None,
        failed_seeds=tuple(rollout.seed or 0 for rollout in rollouts if not rollout.success),
    )
