"""Records of a chains run and what they add up to: rates with intervals, scores per task, and CALVIN's `results.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from rfedge.envs.chains import CHAIN_LENGTH
from rfedge.envs.interface import EnvironmentIdentity
from rfedge.envs.tasks import TASKS
from rfedge.records.machine import Measurement
from rfedge.records.record import Record
from rfedge.records.statistics import Mean, Proportion, mean_with_interval, proportion
from rfedge.runtimes.rollout import RolloutRecord


class ChainRecord(Record):
    """One chain; one line of `chains.jsonl`."""

    index: int  # place in the set of chains
    state: dict[str, int | str]
    tasks: tuple[str, ...]
    num_solved: int  # 0 to 5, in a row from the first
    subtasks: tuple[RolloutRecord, ...]  # those that were begun: the solved ones and the one that ended the chain
    environment: EnvironmentIdentity  # what it was run in; renderer "none" when the agent did not look
    duration_s: float  # wall-clock time

    @property
    def key(self) -> int:
        return self.index


class TaskScore(Record):
    """One task over all chains; tasks that no chain reached have none."""

    success: Proportion
    mean_steps: float | None  # control steps of the successes; None without one


class ChainConditions(Record):
    environment: str
    scene: str
    agent: dict[str, str]  # name and facts of what acted, for instance a bundle's hash
    language: str
    max_steps: int
    seed: int
    num_chains: int
    chains_sha256: str  # see `rfedge.envs.chains.chains_sha256`


class ChainReport(Measurement):
    """The whole document; `renderer` drew the images."""

    format: Literal["rfedge-chains"] = "rfedge-chains"
    schema_version: int = 1
    conditions: ChainConditions
    renderer: str
    average_length: Mean  # mean number of subtasks solved in a row
    success_rates: dict[str, Proportion]  # "1" to "5" -> share of the chains with at least that many solved in a row
    tasks: dict[str, TaskScore]
    mean_solved_steps: float | None  # control steps of a solved subtask; None when none was
    chain_seconds: float  # time of all chains added up
    wall_seconds: float  # of the call that finished the run; it did not run the `num_resumed` chains it found done
    num_workers: int
    num_resumed: int
    looks: str | None = None  # what they showed; None in records that are older than the field


def average_length(records: Sequence[ChainRecord], *, seed: int) -> Mean:
    """Return the mean number of subtasks solved in a row, over at least one chain."""
    lengths = np.array([record.num_solved for record in records], dtype=np.float64)
    return mean_with_interval(lengths, seed=seed, between=(0.0, CHAIN_LENGTH))


def success_rates(records: Sequence[ChainRecord]) -> dict[str, Proportion]:
    """Return "1" to "5" -> share of the chains, at least one, with that many solved in a row or more."""
    return {
        str(length): proportion(sum(record.num_solved >= length for record in records), len(records))
        for length in range(1, CHAIN_LENGTH + 1)
    }


def attempted_subtasks(records: Iterable[ChainRecord]) -> list[RolloutRecord]:
    """Return every subtask that was begun, chain by chain."""
    return [subtask for record in records for subtask in record.subtasks]


def task_scores(subtasks: Iterable[RolloutRecord]) -> dict[str, TaskScore]:
    """Return the score of every task that was begun, in the order of the task ids."""
    total: Counter[str] = Counter()
    solved_steps: dict[str, list[int]] = {}
    for subtask in subtasks:
        task = subtask.task or ""  # every rollout of a measurement has one
        total[task] += 1
        if subtask.success:
            solved_steps.setdefault(task, []).append(subtask.num_steps)
    return {
        task: TaskScore(
            success=proportion(len(solved_steps.get(task, ())), total[task]),
            mean_steps=float(np.mean(solved_steps[task])) if task in solved_steps else None,
        )
        for task in TASKS
        if task in total
    }


def mean_solved_steps(subtasks: Iterable[RolloutRecord]) -> float | None:
    """Return the mean control steps of the solved subtasks; None when there is none."""
    steps = [subtask.num_steps for subtask in subtasks if subtask.success]
    return float(np.mean(steps)) if steps else None


def calvin_results(records: Sequence[ChainRecord], name: str) -> dict[str, Any]:
    """Return the document that CALVIN's evaluation writes as `results.json`, with `name` in the place of its epoch."""
    scores = {task: score.success for task, score in task_scores(attempted_subtasks(records)).items()}
    return {
        name: {
            "avg_seq_len": float(np.mean([record.num_solved for record in records])),
            "chain_sr": {length: rate.value for length, rate in success_rates(records).items()},
            "task_info": {task: {"success": score.successes, "total": score.n} for task, score in scores.items()},
        }
    }
