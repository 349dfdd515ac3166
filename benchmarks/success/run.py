"""Proves that compiled policies still work: several bundles, each played in several ways, on the same chains and starts.

Every row is a run of its own with its own folder, so a killed measurement goes on, and rows are paired chain by chain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from rfedge.benchmarks.success.chains import (
    ChainRecord,
    attempted_subtasks,
    average_length,
    mean_solved_steps,
    read_chains,
    run_chains,
    success_rates,
    task_scores,
)
from rfedge.benchmarks.success.plan import ENRICHED, RowPlan, SuccessPlan, describe_policies, lay_out
from rfedge.benchmarks.success.report import (
    ChainResult,
    Paired,
    SingleTaskResult,
    SuccessConditions,
    SuccessReport,
    SuccessRow,
    kind_of,
)
from rfedge.benchmarks.success.single_tasks import TrialRecord, make_trials, run_trials
from rfedge.bundle.artifact import load_bundle
from rfedge.envs.chains import CHAIN_LENGTH, Chain, chains_sha256
from rfedge.envs.interface import CONTROL_HZ, EnvironmentIdentity, Float64Array
from rfedge.envs.language import ENRICHED_INSTRUCTIONS
from rfedge.errors import ConfigError, ContractError
from rfedge.jobs.processes import JobRunner, run_jobs
from rfedge.jobs.progress import Count
from rfedge.messages import POSE_SIZE
from rfedge.policies import bundle_name
from rfedge.records.machine import provenance
from rfedge.records.plan import check_least
from rfedge.records.statistics import Mean, Ratio, mean_with_interval, proportion, ratio_of_sums, summarise
from rfedge.runtimes.control.modes import warn_of_time_base
from rfedge.runtimes.policy.text import InstructionEncoder, open_encoder
from rfedge.runtimes.rollout import RolloutRecord

SUCCESS_FILE: Final = "success.json"
_CHAINS_FOLDER: Final = "chains"
_TRIALS_FOLDER: Final = "single-tasks"
# what `rfedge.benchmarks.success.sweep` adds to the folder
SWEEP_FILES: Final = ("latency.json", "sweep.json", "sweep.png")
_WHEN: Final = {"measured_at", "commit", "machine", "versions", "wall_seconds"}


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


def run_success(
    plan: SuccessPlan,
    chains: Sequence[Chain],
    output: Path | None = None,
    *,
    workers: int = 1,
    runner: JobRunner = run_jobs,
    executor: str = "processes",
    on_progress: Count = lambda *_: None,
) -> SuccessReport:
    """Run every row, or what an earlier call left of it, and report.

    `chains` are the same for every row; empty for single tasks alone. `output` gets one folder a row and `success.json`;
    None keeps nothing. The jobs run where `runner` runs them, which the report calls `executor`; no result but the times
    depends on the number of workers. `on_progress` counts chains and starts over all rows together.

    Raises:
        ConfigError: the plan has nothing to run or something that is not possible, or `output` holds another run, or one
            begun in another environment.
        ArtifactError: a bundle or a journal in `output` is damaged.
        ContractError: a bundle does not know an instruction.
        BackendUnavailableError: the simulator, its renderer or the backend is not on this machine.
    """
    check_least(1, {"chains and single tasks": len(chains) + plan.starts_per_task}, remedy="Raise --num or --single-tasks.")
    begun_s = time.perf_counter()
    policies = describe_policies(plan)
    plan = dataclasses.replace(plan, left_out=plan.left_out | _unknown_sentences(plan))
    rows, not_possible = lay_out(plan, policies)
    _check_words(plan, rows, chains)
    if not plan.skip_impossible:  # whoever wants all numbers of steps knows
        for steps, stride in dict.fromkeys((row.execute_steps, row.policy.frame_stride) for row in rows):
            warn_of_time_base(steps, stride)
    conditions = SuccessConditions(
        environment=plan.worlds[0].name,
        mode=plan.mode,
        num_chains=len(chains),
        chains_sha256=chains_sha256(chains) if chains else None,
        starts_per_task=plan.starts_per_task,
        max_steps=plan.max_steps,
        seed=plan.seed,
        control_hz=CONTROL_HZ,
        backend=plan.backend,
        threads=plan.settings.threads,
        executor=executor,
        left_out_instructions=tuple(sorted(plan.left_out)),
    )
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _refuse_other_content(folder)
        stack.callback(_remove_empty, folder)
        work = _Work(plan, chains, folder, workers, runner, len(rows), on_progress)
        found = {row.name: work.run(row) for row in rows}
        report = SuccessReport(
            **provenance(),
            conditions=conditions,
            # without the place where a shipped policy is installed
            policies=tuple(policy.model_copy(update={"path": bundle_name(Path(policy.path))}) for policy in policies),
            rows=tuple(summarise_row(row, found, plan) for row in rows),
            not_possible=not_possible,
            wall_seconds=time.perf_counter() - begun_s,
        )
        if not work.num_finished:
            report = _stored(folder, report)
        report.write(folder / SUCCESS_FILE)
        return report


@dataclass(slots=True)
class _Work:
    """Runs the rows one after the other in `folder`."""

    plan: SuccessPlan
    chains: Sequence[Chain]
    folder: Path
    workers: int
    runner: JobRunner
    num_rows: int
    on_progress: Count
    num_finished: int = 0  # chains and starts that were not there before
    environment: EnvironmentIdentity | None = None  # of all rows: those of others say nothing about each other
    num_done: int = 0

    def run(self, row: RowPlan) -> RowRecords:
        """Run what is left of a row and return all of it."""
        plan, chain_plan = self.plan, row.chain_plan(self.plan, self.environment)
        chains: tuple[ChainRecord, ...] = ()
        trials: tuple[TrialRecord, ...] = ()
        num_workers = 0
        if self.chains:
            path = self.folder / _CHAINS_FOLDER / row.folder_name
            report = run_chains(
                chain_plan, self.chains, path, workers=self.workers, runner=self.runner, on_chain=self._counter()
            )
            chains, num_workers = read_chains(path), report.num_workers
            chain_plan = dataclasses.replace(chain_plan, environment=chains[0].environment)
        if plan.starts_per_task:
            trials = run_trials(
                chain_plan,
                plan.starts_per_task,
                self.folder / _TRIALS_FOLDER / row.folder_name,
                tasks=plan.tasks,
                workers=self.workers,
                runner=self.runner,
                on_trial=self._counter(),
            )
        records = RowRecords(chains, trials, max([num_workers, *(trial.num_workers for trial in trials)]))
        self.environment = records.environment
        return records

    def _counter(self) -> Count:
        """Return what counts the jobs of one run into those of all rows."""
        before, calls = self.num_done, itertools.count()

        def count(done: int, _total: int) -> None:
            self.num_finished += next(calls) > 0  # the first call counts what an earlier run had finished
            self.num_done = before + done
            num_jobs = self.num_rows * (len(self.chains) + self.plan.starts_per_task * len(self.plan.tasks))
            self.on_progress(self.num_done, num_jobs)

        return count


def _unknown_sentences(plan: SuccessPlan) -> frozenset[str]:
    """Return the held-out sentences that one of the bundles does not know; none where no row gets any."""
    unknown: set[str] = set()
    for encode in _encoders(plan).values() if ENRICHED in plan.languages else ():
        sentences = itertools.chain.from_iterable(ENRICHED_INSTRUCTIONS.values())
        unknown.update(sentence for sentence in sentences if not _knows(encode, sentence))
    return frozenset(unknown)


def _encoders(plan: SuccessPlan) -> dict[str, InstructionEncoder]:
    """Return what turns instructions into tokens, by the path of each policy."""
    found = {str(path): open_encoder(load_bundle(path, verify=False)) for path in plan.bundles}
    for torch in plan.torch:  # all of one checkpoint say the same
        if str(torch.checkpoint) not in found:
            with torch.open(plan.settings) as policy:
                found[str(torch.checkpoint)] = policy.parts.encoder
    return found


def _knows(encode: InstructionEncoder, sentence: str) -> bool:
    try:
        encode(sentence)
    except ContractError:
        return False
    return True


def _check_words(plan: SuccessPlan, rows: Sequence[RowPlan], chains: Sequence[Chain]) -> None:
    """Refuse instructions that a policy does not know now, not after hours."""
    asked: dict[str, set[str]] = {}  # bundle -> instructions
    for row in rows:
        chain_plan = row.chain_plan(plan)
        subtasks = [subtask for index, chain in enumerate(chains) for subtask in chain_plan.subtasks(index, chain)]
        subtasks.extend(trial.subtask for trial in make_trials(chain_plan, plan.starts_per_task, plan.tasks))
        asked.setdefault(row.policy.path, set()).update(subtask.instruction for subtask in subtasks)
    encoders = _encoders(plan)
    for path, instructions in asked.items():
        for instruction in instructions:
            encoders[path](instruction)


def _refuse_other_content(folder: Path) -> None:
    known = {_CHAINS_FOLDER, _TRIALS_FOLDER, SUCCESS_FILE, *SWEEP_FILES}
    if folder.exists() and (not folder.is_dir() or any(path.name not in known for path in folder.iterdir())):
        got, remedy = "something that is no measurement of success", "Choose another --output."
        raise ConfigError(f"output {folder}", got=got, expected="an empty or new folder", remedy=remedy)


def _remove_empty(folder: Path) -> None:
    """Leave nothing of a measurement that could not begin."""
    for path in (folder / _CHAINS_FOLDER, folder / _TRIALS_FOLDER, folder):
        with contextlib.suppress(OSError):  # it has content, or never was
            path.rmdir()


def _stored(folder: Path, report: SuccessReport) -> SuccessReport:
    """Return the report that is in `folder` where it is of the same rows: it says when and on what they were measured."""
    with contextlib.suppress(OSError, ValidationError):
        stored = SuccessReport.model_validate_json((folder / SUCCESS_FILE).read_bytes())
        if stored.model_dump(exclude=_WHEN) == report.model_dump(exclude=_WHEN):
            return stored
    return report
