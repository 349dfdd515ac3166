"""Sums over the records of a row, alone and paired with those of its reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rfedge.benchmarks.success.chain_report import (
    ChainRecord,
    attempted_subtasks,
    average_length,
    mean_solved_steps,
    success_rates,
    task_scores,
)
from rfedge.benchmarks.success.report import ChainResult, Kind, Paired, SingleTaskResult
from rfedge.benchmarks.success.single_tasks import TrialRecord
from rfedge.envs.chains import CHAIN_LENGTH
from rfedge.envs.interface import EnvironmentIdentity, Float64Array
from rfedge.messages import POSE_SIZE
from rfedge.records.statistics import Mean, Ratio, Summary, mean_with_interval, proportion, ratio_of_sums, summarise
from rfedge.runtimes.rollout import RolloutRecord


@dataclass(frozen=True, slots=True)
class RowRecords:
    """Everything that was run in a row."""

    chains: tuple[ChainRecord, ...]  # in the order of their set; may be empty
    trials: tuple[TrialRecord, ...]  # task by task; may be empty
    num_workers: int  # most processes that ran beside each other

    @property
    def subtasks(self) -> tuple[RolloutRecord, ...]:
        return (*attempted_subtasks(self.chains), *(trial.rollout for trial in self.trials))

    @property
    def num_control_steps(self) -> int:
        return sum(subtask.num_steps for subtask in self.subtasks)

    @property
    def duration_s(self) -> float:
        """Wall-clock time of all chains and starts added up."""
        return sum(chain.duration_s for chain in self.chains) + sum(trial.duration_s for trial in self.trials)

    @property
    def environment(self) -> EnvironmentIdentity:
        return self.chains[0].environment if self.chains else self.trials[0].environment

    @property
    def interventions(self) -> dict[str, int]:
        """How often the guard changed an action, by the kinds of `rfedge.runtimes.control.safety.INTERVENTIONS`."""
        total: Counter[str] = Counter()
        for subtask in self.subtasks:
            total.update(subtask.interventions)
        return dict(total)


def kind_of(execute_steps: int, frame_stride: int) -> Kind:
    """Return how the frames of a row compare with those of the training."""
    if execute_steps == frame_stride:
        return "closed-loop" if execute_steps == 1 else "jump-step"
    return "open-loop" if frame_stride == 1 else "other"


def chain_result(records: RowRecords, *, seed: int) -> ChainResult | None:
    """Add the chains up; None without any."""
    chains = records.chains
    if not chains:
        return None
    subtasks = attempted_subtasks(chains)
    solved, begun = _solved(chains), np.array([len(chain.subtasks) for chain in chains], dtype=np.float64)
    task_success = ratio_of_sums(solved, begun, seed=seed)
    assert task_success is not None, "every chain begins a task"
    if task_success.low == task_success.high:  # all or none: chains of that kind alone were met
        bound = proportion(round(task_success.value) * len(chains), len(chains))
        task_success = Ratio(value=task_success.value, low=bound.low, high=bound.high)
    return ChainResult(
        num_chains=len(chains),
        average_length=average_length(chains, seed=seed),
        success_rates=success_rates(chains),
        task_success=task_success,
        mean_solved_steps=mean_solved_steps(subtasks),
        tasks=task_scores(subtasks),
        num_solved=tuple(chain.num_solved for chain in chains),
    )


def single_task_result(records: RowRecords, starts_per_task: int) -> SingleTaskResult | None:
    """Add the starts up; None without any."""
    trials = records.trials
    if not trials:
        return None
    subtasks = [trial.rollout for trial in trials]
    return SingleTaskResult(
        starts_per_task=starts_per_task,
        success=proportion(sum(subtask.success is True for subtask in subtasks), len(subtasks)),
        mean_solved_steps=mean_solved_steps(subtasks),
        tasks=task_scores(subtasks),
        failed_starts={
            task: failed
            for task in dict.fromkeys(subtask.task or "" for subtask in subtasks)
            if (failed := tuple(one.seed or 0 for one in subtasks if one.task == task and not one.success))
        },
    )


def pair(name: str, reference: RowRecords, records: RowRecords, *, seed: int) -> Paired:
    """Compare a row with its reference `name`, chain by chain and start by start."""
    length = _compare(_solved(reference.chains), _solved(records.chains), seed, CHAIN_LENGTH)
    single = _compare(_successes(reference.trials), _successes(records.trials), seed, 1)
    return Paired(
        reference=name,
        average_length_difference=length[0],
        average_length_share=length[1],
        single_task_difference=single[0],
        single_task_share=single[1],
    )


def jerk(subtasks: Iterable[RolloutRecord]) -> float | None:
    """Return the root mean square second difference of the actions, see `SuccessRow.jerk`; None without one."""
    square_sum, count = 0.0, 0
    for subtask in subtasks:
        square_sum += subtask.jerk_square_sum
        count += POSE_SIZE * max(0, subtask.num_steps - 2)
    return float(np.sqrt(square_sum / count)) if count else None


def timings(subtasks: Iterable[RolloutRecord]) -> Summary | None:
    """Summarise the policy calls; None when no agent timed itself."""
    call_ms = [duration_ms for subtask in subtasks for duration_ms in subtask.call_ms or ()]
    return summarise(np.array(call_ms)) if call_ms else None


def _compare(reference: Float64Array, values: Float64Array, seed: int, most: int) -> tuple[Mean | None, Ratio | None]:
    if not len(values):
        return None, None
    difference = mean_with_interval(values - reference, seed=seed, between=(-most, most))
    return difference, ratio_of_sums(values, reference, seed=seed)


def _solved(chains: Sequence[ChainRecord]) -> Float64Array:
    return np.array([chain.num_solved for chain in chains], dtype=np.float64)


def _successes(trials: Sequence[TrialRecord]) -> Float64Array:
    return np.array([trial.rollout.success is True for trial in trials], dtype=np.float64)
