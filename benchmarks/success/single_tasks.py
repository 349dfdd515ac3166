"""Every task for itself, from prepared starts: the same starts for every agent, those from which experts are measured."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rfedge.benchmarks.success.chains import ChainPlan, run_missing
from rfedge.envs.experts import prepare_start
from rfedge.envs.interface import EnvironmentIdentity
from rfedge.envs.tasks import TASKS, check_task
from rfedge.errors import ConfigError
from rfedge.io.journal import open_journal
from rfedge.jobs.processes import JobRunner, run_jobs
from rfedge.jobs.progress import Count
from rfedge.records.plan import check_least
from rfedge.records.record import Record, parse_lines
from rfedge.runtimes.rollout import RolloutRecord
from rfedge.runtimes.rollout.rollout_session import RolloutSetup, Subtask, open_session

TRIALS_FILE: Final = "trials.jsonl"
_TRIALS_SCHEMA_VERSION: Final = 2


class TrialRecord(Record):
    """One start of one task, whose number is `rollout.seed`; one line of `trials.jsonl`."""

    rollout: RolloutRecord
    environment: EnvironmentIdentity
    num_workers: int  # processes that ran beside each other
    duration_s: float  # wall-clock time, the preparation left out

    @property
    def key(self) -> tuple[str | None, int | None]:
        return self.rollout.task, self.rollout.seed


@dataclass(frozen=True, slots=True)
class Trial:
    """A task and the number of the start it is done from, see `rfedge.envs.experts.prepare_start`."""

    subtask: Subtask
    start: int

    @property
    def key(self) -> tuple[str, int]:
        return self.subtask.task, self.start


def make_trials(plan: ChainPlan, starts_per_task: int, tasks: Sequence[str] = TASKS) -> tuple[Trial, ...]:
    """Return what is run, task by task."""
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
    on_trial: Count = lambda *_: None,
) -> tuple[TrialRecord, ...]:
    """Run every start of every task, from `plan.seed` on, or what an earlier call left of them; return them task by task."""
    check_least(1, {"starts per task": starts_per_task, "tasks": len(tasks), "workers": workers}, remedy="Ask for more.")
    trials = make_trials(plan, starts_per_task, tasks)
    arguments = {"schema_version": _TRIALS_SCHEMA_VERSION, **plan.arguments(), "tasks": list(tasks)}
    path = output / TRIALS_FILE
    with open_journal(path, arguments) as journal:
        done = {record.key: record for record in parse_lines(TrialRecord, journal.records, path, what="start")}
        _check_no_more(done.values(), plan.seed + starts_per_task - 1, output)
        call = functools.partial(_run_trial, workers)
        run_missing(plan, journal, done, {trial.key: trial for trial in trials}, call, workers, runner, on_trial)
    return tuple(done[trial.key] for trial in trials)


def _check_no_more(done: Iterable[TrialRecord], last: int, folder: Path) -> None:
    """Refuse a folder that holds starts beyond the last one asked for."""
    num_more = max((record.rollout.seed or 0 for record in done), default=last) - last
    if num_more > 0:
        got, remedy = f"{num_more} fewer than are there", "Ask for more to go on, or choose another --output."
        raise ConfigError(f"starts per task of the run in {folder}", got=got, expected="as many or more", remedy=remedy)


def _run_trial(num_workers: int, setup: RolloutSetup, trial: Trial) -> TrialRecord:
    session = open_session(setup)
    prepare_start(trial.subtask.task, session.environment, trial.start)
    begun_s = time.perf_counter()
    rollout = session.roll_out(trial.subtask, seed=trial.start)
    return TrialRecord(
        rollout=rollout, environment=session.identity, num_workers=num_workers, duration_s=time.perf_counter() - begun_s
    )
