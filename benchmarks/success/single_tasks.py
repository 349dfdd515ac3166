"""Every task for itself, from prepared starts: the same starts for every agent, those from which experts are measured."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rfedge.benchmarks.success.chain_report import JournalRecord
from rfedge.benchmarks.success.chains import ChainPlan, run_journaled
from rfedge.envs.experts import prepare_start
from rfedge.envs.tasks import TASKS, check_task
from rfedge.errors import ConfigError
from rfedge.jobs.processes import JobRunner, run_jobs
from rfedge.jobs.progress import Count
from rfedge.records.plan import check_least
from rfedge.runtimes.rollout import RolloutRecord
from rfedge.runtimes.rollout.chain_agents import Subtask
from rfedge.runtimes.rollout.rollout_session import RolloutSetup, open_session

TRIALS_FILE: Final = "trials.jsonl"
_TRIALS_SCHEMA_VERSION: Final = 2


class TrialRecord(JournalRecord):
    """One start of one task, whose number is `rollout.seed`; one line of `trials.jsonl`.

    Attributes:
        num_workers: processes that ran beside each other.
    """

    rollout: RolloutRecord
    num_workers: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A task and the number of the start it is done from, see `rfedge.envs.experts.prepare_start`."""

    subtask: Subtask
    start: int


def make_trials(plan: ChainPlan, starts_per_task: int, tasks: Sequence[str] = TASKS) -> tuple[Trial, ...]:
    """Return what is run, task by task.

    Raises:
        ConfigError: a task is unknown, or the plan's own instructions lack it.
    """
    return tuple(
        Trial(plan.subtask(check_task(task), [TASKS.index(task), start]), start)
        for task in tasks
        for start in range(plan.seed, plan.seed + starts_per_task)
    )


def run_trials(
    plan: ChainPlan,
    starts_per_task: int,
    output: Path,
    *,
    tasks: Sequence[str] = TASKS,
    workers: int = 1,
    runner: JobRunner = run_jobs,
    on_trial: Count | None = None,
) -> tuple[TrialRecord, ...]:
    """Run every start of every task, or those that an earlier call did not finish.

    Args:
        plan: agent, world, language, steps and seed; the starts are `plan.seed`, `plan.seed` + 1, ...
        starts_per_task: at least 1.
        output: folder for `trials.jsonl`, one line a start in the order in which they end; a run of fewer starts goes on
            there.
        workers: processes; the result does not depend on it.
        on_trial: called with (starts done, starts in all), at the beginning and after every start.

    Returns:
        Task by task, in the order of the starts.

    Raises:
        ConfigError: there is nothing to run, a task, an environment or the agent is not possible, `output` holds another
            run, one begun in another environment or something else, or another process runs there.
        BackendUnavailableError: the simulator or its renderer is not on this machine.
        ArtifactError: `trials.jsonl` is damaged.
    """
    check_least(1, {"starts per task": starts_per_task, "tasks": len(tasks), "workers": workers}, remedy="Ask for more.")
    done, _ = run_journaled(
        plan,
        {(trial.subtask.task, trial.start): trial for trial in make_trials(plan, starts_per_task, tasks)},
        functools.partial(_run_trial, workers),
        TrialRecord,
        output / TRIALS_FILE,
        {"schema_version": _TRIALS_SCHEMA_VERSION, **plan.arguments(), "tasks": list(tasks)},
        key=lambda record: (record.rollout.task or "", record.rollout.seed or 0),
        what="start",
        check=functools.partial(_check_no_more, plan.seed + starts_per_task - 1, output),
        workers=workers,
        runner=runner,
        on_job=on_trial,
    )
    return tuple(done.values())


def _check_no_more(last: int, folder: Path, done: Mapping[Any, TrialRecord]) -> None:
    """Refuse a folder that holds starts beyond the last one asked for.

    Raises:
        ConfigError: it does.
    """
    num_more = max((record.rollout.seed or 0 for record in done.values()), default=last) - last
    if num_more > 0:
        raise ConfigError(
            f"starts per task of the run in {folder}",
            got=f"{num_more} fewer than are there",
            expected="as many or more",
            remedy="Ask for more to go on, or choose another --output.",
        )


def _run_trial(num_workers: int, setup: RolloutSetup, trial: Trial) -> TrialRecord:
    session = open_session(setup)
    prepare_start(trial.subtask.task, session.environment, trial.start)
    begun_s = time.perf_counter()
    rollout = session.roll_out(trial.subtask, seed=trial.start)
    return TrialRecord(
        rollout=rollout,
        environment=session.identity,
        num_workers=num_workers,
        duration_s=time.perf_counter() - begun_s,
    )
