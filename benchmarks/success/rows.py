"""Sums over the records of a row, alone and paired with those of its reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rfedge.benchmarks.success.chains import (
    ChainRecord,
    attempted_subtasks,
    average_length,
    mean_solved_steps,
    success_rates,
    task_scores,
)
from rfedge.benchmarks.success.report import ChainResult, Kind, Paired, SingleTaskResult, SuccessRow
from rfedge.benchmarks.success.single_tasks import TrialRecord
from rfedge.envs.chains import CHAIN_LENGTH
from rfedge.envs.interface import EnvironmentIdentity, Float64Array
from rfedge.messages import POSE_SIZE
from rfedge.records.statistics import Mean, Ratio, mean_with_interval, proportion, ratio_of_sums, summarise
from rfedge.runtimes.rollout import RolloutRecord

if TYPE_CHECKING:
    from rfedge.benchmarks.success.plan import RowPlan, SuccessPlan


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
    def environment(self) -> EnvironmentIdentity:
        return self.chains[0].environment if self.chains else self.trials[0].environment


def kind_of(execute_steps: int, frame_stride: int) -> Kind:
    """Return how the frames of a row compare with those of the training."""
    if execute_steps == frame_stride:
        return "closed-loop" if execute_steps == 1 else "jump-step"
    return "open-loop" if frame_stride == 1 else "other"


def summarise_row(row: RowPlan, found: Mapping[str, RowRecords], plan: SuccessPlan) -> SuccessRow:
    """Add up what was run of a row; `found` holds its records and those of its reference, by name."""
    records, subtasks = found[row.name], found[row.name].subtasks
    call_ms = [duration_ms for subtask in subtasks for duration_ms in subtask.call_ms or ()]
    num_differences = sum(POSE_SIZE * max(0, subtask.num_steps - 2) for subtask in subtasks)
    jerk_square_sum, interventions = 0.0, Counter[str]()
    for subtask in subtasks:
        jerk_square_sum += subtask.jerk_square_sum
        interventions.update(subtask.interventions)
    return SuccessRow(
        name=row.name,
        policy=row.policy.label,
        precision=row.policy.precision,
        mode=row.mode,
        kind=kind_of(row.execute_steps, row.policy.frame_stride),
        execute_steps=row.execute_steps,
        ensemble=row.ensemble,
        scene=row.world.scene,
        language=row.language,
        chains=_chain_result(records, seed=plan.seed),
        single_tasks=_single_task_result(records, plan.starts_per_task),
        paired=row.reference and _pair(row.reference.name, found[row.reference.name], records, seed=plan.seed),
        jerk=float(np.sqrt(jerk_square_sum / num_differences)) if num_differences else None,
        call_ms=summarise(np.array(call_ms)) if call_ms else None,
        num_inferences=len(call_ms),
        num_control_steps=sum(subtask.num_steps for subtask in subtasks),
        rollout_seconds=sum(one.duration_s for one in records.chains) + sum(one.duration_s for one in records.trials),
        num_workers=records.num_workers,
        renderer=records.environment.renderer,
        looks=records.environment.looks,
        interventions=dict(interventions),
    )


def _chain_result(records: RowRecords, *, seed: int) -> ChainResult | None:
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


def _single_task_result(records: RowRecords, starts_per_task: int) -> SingleTaskResult | None:
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


def _pair(name: str, reference: RowRecords, records: RowRecords, *, seed: int) -> Paired:
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


def _compare(reference: Float64Array, values: Float64Array, seed: int, most: int) -> tuple[Mean | None, Ratio | None]:
    if not len(values):
        return None, None
    difference = mean_with_interval(values - reference, seed=seed, between=(-most, most))
    return difference, ratio_of_sums(values, reference, seed=seed)


def _solved(chains: Sequence[ChainRecord]) -> Float64Array:
    return np.array([chain.num_solved for chain in chains], dtype=np.float64)


def _successes(trials: Sequence[TrialRecord]) -> Float64Array:
    return np.array([trial.rollout.success is True for trial in trials], dtype=np.float64)
