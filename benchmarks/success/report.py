"""Records of a success measurement: one row a way to run a policy, each with intervals and paired with its reference row.

The sweep's document, see `rfedge.benchmarks.success.sweep`, holds the same rows.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rfedge.benchmarks.success.chain_report import TaskScore
from rfedge.envs.looks import world_name
from rfedge.errors import GateError
from rfedge.records.machine import Measurement
from rfedge.records.record import Record
from rfedge.records.statistics import Mean, Proportion, Ratio, Summary

SUCCESS_SCHEMA_VERSION: Final = 1
# closed-loop: every frame, as it was trained. jump-step: every k-th frame, as it was trained. open-loop: every k-th frame
# although it was trained on every one. other: trained on every s-th frame and run on every k-th, k not s.
Kind = Literal["closed-loop", "open-loop", "jump-step", "other"]


def loop_name(kind: str, ensemble: float | None) -> str:
    """Return what tables call a loop: its kind, and whether it plays an ensemble."""
    return kind if ensemble is None else f"{kind}, ensemble"


def ensemble_suffix(ensemble: float | None) -> str:
    """Return what names end in that tell ensembles apart; nothing without one."""
    return "" if ensemble is None else f", ensemble {ensemble:g}"


class PolicyRecord(Record):
    """One bundle of the measurement, or one checkpoint in PyTorch.

    Attributes:
        label: what rows and tables call it; unique in the document.
        path: its folder, or the name of a shipped policy.
        manifest_sha256: of manifest.json, which holds the hashes of all other files; of a checkpoint its weights'.
        size_bytes: of its files; of a checkpoint whose precision is made while it is loaded, its weights in memory.
        provenance: what the manifest says of the checkpoint it was made from.
        trained_on: the scenes of the training data, for instance "A,B,C", as the caller or else the manifest says; None
            when neither does.
        forced_past: thresholds of the export that it missed and was written in spite of.
        backend: what ran it where that is not the conditions' backend: torch, for a checkpoint; for the engines of a bundle
            "tensorrt, emulated".
    """

    label: str
    path: str
    policy: str
    precision: str
    block_precisions: dict[str, str]
    manifest_sha256: str
    size_bytes: int
    chunk_size: int
    frame_stride: int
    provenance: dict[str, str]
    trained_on: str | None
    forced_past: tuple[str, ...]
    backend: str | None = None

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = write(self)
        return {name: value for name, value in document.items() if name != "backend" or value is not None}


class ChainResult(Record):
    """Chains of five tasks, see `rfedge.benchmarks.success.chains`.

    Attributes:
        average_length: mean number of tasks solved in a row, bootstrap interval over chains.
        success_rates: "1" to "5" -> share of the chains with at least that many solved in a row.
        task_success: tasks solved over tasks begun, bootstrap interval over chains: those of one chain are not independent.
        mean_solved_steps: control steps of a solved task; None when none was.
        tasks: score of every task that was begun.
        num_solved: 0 to 5 of every chain in the order of the set, with which any two rows can be paired.
    """

    num_chains: int
    average_length: Mean
    success_rates: dict[str, Proportion]
    task_success: Ratio
    mean_solved_steps: float | None
    tasks: dict[str, TaskScore]
    num_solved: tuple[int, ...]


class SingleTaskResult(Record):
    """Every task from its own prepared starts, without a chain around it; the starts are those of the experts' measurement.

    Attributes:
        starts_per_task: the same for every task, so the share of all starts is the mean over the tasks.
        success: of all starts, Wilson's interval.
        mean_solved_steps: control steps of a solved start; None when none was.
        tasks: all of them, in the order of the task ids.
        failed_starts: task -> numbers of the starts that were not solved, for `rfedge run --task --seed`.
    """

    starts_per_task: int
    success: Proportion
    mean_solved_steps: float | None
    tasks: dict[str, TaskScore]
    failed_starts: dict[str, tuple[int, ...]] = Field(default_factory=dict)


class Paired(Record):
    """A row against its reference, chain by chain and start by start.

    Attributes:
        reference: name of the row, of the same scene and language: see `SuccessPlan.pairing`.
        average_length_difference: mean over chains of (row - reference), bootstrap over chains; None without chains.
        average_length_share: average length over the reference's, bootstrap over chains; None without chains or where the
            reference solved nothing.
    """

    reference: str
    average_length_difference: Mean | None
    average_length_share: Ratio | None
    single_task_difference: Mean | None
    single_task_share: Ratio | None


class SuccessRow(Record):
    """One policy run in one way.

    Attributes:
        name: label, steps, ensemble, scene and language; unique in the document.
        kind: how that compares with the training, see `Kind`.
        execute_steps: control steps per policy call.
        ensemble: decay of the temporal ensemble that was played, see `rfedge.runtimes.control.ensembling`; None without one.
        language: "evaluation" or "enriched".
        chains, single_tasks: None where not asked for.
        paired: None for a reference row.
        jerk: root mean square of the second difference a[t+1] - 2 a[t] + a[t-1] of the executed actions' six pose
            components, over all steps of all tasks begun, never across two tasks; an action is a velocity in units of 0.02 m
            or 0.05 rad a step, so this is its change of acceleration. None where no task took three steps.
        call_ms: total of every policy call of the row, measured while `num_workers` processes ran beside each other: good
            for comparing rows of one run, not for what a robot would see.
        num_control_steps: of all chains and starts.
        rollout_seconds: wall-clock time of all chains and starts added up, and so over all workers.
        num_workers: of the call that finished the row.
        renderer, looks: what drew the images and what they showed; the same in all rows. No looks in records that are older
            than the field.
        interventions: how often the loop's guard changed an action, by kind, over all steps.
    """

    name: str
    policy: str
    precision: str
    mode: str
    kind: Kind
    execute_steps: int
    scene: str
    language: str
    chains: ChainResult | None
    single_tasks: SingleTaskResult | None
    paired: Paired | None
    jerk: float | None
    call_ms: Summary | None
    num_inferences: int
    num_control_steps: int
    rollout_seconds: float
    num_workers: int
    renderer: str
    ensemble: float | None = None
    interventions: dict[str, int] = Field(default_factory=dict)
    looks: str | None = None

    @property
    def loop(self) -> str:
        """What tables call the loop: the kind, and whether it plays an ensemble."""
        return loop_name(self.kind, self.ensemble)

    @property
    def mean_solved_steps(self) -> float | None:
        """Control steps of a solved task: of the chains, or of the single tasks where no chain solved one."""
        found = [result.mean_solved_steps for result in (self.chains, self.single_tasks) if result is not None]
        return next((steps for steps in found if steps is not None), None)


class NotPossible(Record):
    """A combination that was asked for and cannot be run, and why."""

    policy: str
    precision: str
    execute_steps: int
    reason: str


class SuccessConditions(Record):
    """Everything that was chosen, but for the rows.

    Attributes:
        mode: the one asked for; None takes the natural one for each row.
        num_chains: 0 for none.
        chains_sha256: see `rfedge.envs.chains.chains_sha256`; None without chains.
        starts_per_task: 0 for none.
        control_hz: control steps per second.
        backend, threads: of every policy; threads per worker.
        executor: "processes" of this machine or "ray".
        left_out_instructions: held-out sentences that no row got, because one of the bundles does not know them.
    """

    environment: str
    mode: str | None
    num_chains: int
    chains_sha256: str | None
    starts_per_task: int
    max_steps: int
    seed: int
    control_hz: float
    backend: str
    threads: int
    executor: str
    left_out_instructions: tuple[str, ...] = ()


class SuccessReport(Measurement):
    """The whole document."""

    format: Literal["rfedge-success"] = "rfedge-success"
    schema_version: int = SUCCESS_SCHEMA_VERSION
    conditions: SuccessConditions
    policies: tuple[PolicyRecord, ...]
    rows: tuple[SuccessRow, ...]
    not_possible: tuple[NotPossible, ...]
    wall_seconds: float

    @property
    def world(self) -> str:
        """What tables call the world of all rows."""
        return world_name(self.conditions.environment, self.rows[0].looks, self.rows[0].renderer)


def assert_average_length(report: SuccessReport, least: float) -> None:
    """Check the average length of every row. Raises GateError if one is below; the text has the row and both numbers."""
    for row in report.rows:
        if row.chains is not None and row.chains.average_length.value < least:
            length = row.chains.average_length
            raise GateError(
                f"average length of {row.name!r}",
                got=f"{length.value:.3f} [{length.low:.3f}, {length.high:.3f}]",
                expected=f"at least {least:g}",
                remedy="Compare the tasks in the table, or ask for less.",
            )


def assert_share(report: SuccessReport, least: float) -> None:
    """Check the share of the reference's success that remains in every other row: of chains, or without them of starts.
    Raises GateError if one is below, or unknown because the reference solved nothing; the text has the row and both numbers.
    """
    for row in report.rows:
        if row.paired is None:
            continue
        share = row.paired.average_length_share if row.chains is not None else row.paired.single_task_share
        if share is None or share.value < least:
            measured = share and f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
            raise GateError(
                f"share of {row.paired.reference!r} that remains in {row.name!r}",
                got=measured or "a reference that solved nothing",
                expected=f"at least {least:g}",
                remedy="Export at a higher precision, play fewer steps per call, or ask for less.",
            )
