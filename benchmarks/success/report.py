"""Records of a success measurement: one row a way to run a policy, each with intervals and paired with its reference row.

The sweep's document, see `rfedge.benchmarks.success.sweep`, holds the same rows.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rfedge.benchmarks.success.chains import TaskScore
from rfedge.errors import GateError
from rfedge.records.machine import Measurement
from rfedge.records.record import Record
from rfedge.records.statistics import Mean, Proportion, Ratio, Summary

# closed-loop: every frame, as it was trained. jump-step: every k-th frame, as it was trained. open-loop: every k-th frame
# although it was trained on every one. other: trained on every s-th frame and run on every k-th, k not s.
Kind = Literal["closed-loop", "open-loop", "jump-step", "other"]


def kind_of(execute_steps: int, frame_stride: int) -> Kind:
    """Return how the frames of a row compare with those of the training."""
    if execute_steps == frame_stride:
        return "closed-loop" if execute_steps == 1 else "jump-step"
    return "open-loop" if frame_stride == 1 else "other"


class PolicyRecord(Record):
    """One bundle of the measurement, or one checkpoint in PyTorch."""

    label: str  # what rows and tables call it; unique in the document
    path: str  # its folder, or the name of a shipped policy
    policy: str
    precision: str
    block_precisions: dict[str, str]
    manifest_sha256: str  # of manifest.json, which holds the hashes of all other files; of a checkpoint its weights'
    size_bytes: int  # of its files; of a checkpoint whose precision is made while it is loaded, its weights in memory
    chunk_size: int
    frame_stride: int
    provenance: dict[str, str]  # what the manifest says of the checkpoint it was made from
    # the scenes of the training data, for instance "A,B,C", as the caller or else the manifest says; None when neither does
    trained_on: str | None
    forced_past: tuple[str, ...]  # thresholds of the export that it missed and was written in spite of
    # what ran it where that is not the conditions' backend: torch, for a checkpoint; for the engines of a bundle "tensorrt,
    # emulated"
    backend: str | None = None

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = write(self)
        return {name: value for name, value in document.items() if name != "backend" or value is not None}


class ChainResult(Record):
    """Chains of five tasks, see `rfedge.benchmarks.success.chains`."""

    num_chains: int
    average_length: Mean  # mean number of tasks solved in a row, bootstrap interval over chains
    success_rates: dict[str, Proportion]  # "1" to "5" -> share of the chains with at least that many solved in a row
    # tasks solved over tasks begun, bootstrap interval over chains: those of one chain are not independent
    task_success: Ratio
    mean_solved_steps: float | None  # control steps of a solved task; None when none was
    tasks: dict[str, TaskScore]  # score of every task that was begun
    num_solved: tuple[int, ...]  # 0 to 5 of every chain in the order of the set: any two rows can be paired


class SingleTaskResult(Record):
    """Every task from its own prepared starts, those of the experts' measurement, without a chain around it."""

    starts_per_task: int  # the same for every task, so the share of all starts is the mean over the tasks
    success: Proportion  # of all starts, Wilson's interval
    mean_solved_steps: float | None  # control steps of a solved start; None when none was
    tasks: dict[str, TaskScore]  # all of them, in the order of the task ids
    # task -> numbers of the starts that were not solved, for `rfedge run --task --seed`
    failed_starts: dict[str, tuple[int, ...]] = Field(default_factory=dict)


class Paired(Record):
    """A row against its reference, chain by chain and start by start."""

    reference: str  # name of the row, of the same scene and language: see `SuccessPlan.pairing`
    # mean over chains of (row - reference), bootstrap over chains; None without chains
    average_length_difference: Mean | None
    # average length over the reference's, bootstrap over chains; None without chains or where the reference solved nothing
    average_length_share: Ratio | None
    single_task_difference: Mean | None
    single_task_share: Ratio | None


class SuccessRow(Record):
    """One policy run in one way."""

    name: str  # label, steps, ensemble, scene and language; unique in the document
    policy: str
    precision: str
    mode: str
    kind: Kind  # how that compares with the training, see `Kind`
    execute_steps: int  # control steps per policy call
    scene: str
    language: str  # "evaluation" or "enriched"
    # chains, single_tasks: None where not asked for
    chains: ChainResult | None
    single_tasks: SingleTaskResult | None
    paired: Paired | None  # None for a reference row
    # root mean square of the second difference a[t+1] - 2 a[t] + a[t-1] of the executed actions' six pose components, over
    # all steps of all tasks begun, never across two tasks; an action is a velocity in units of 0.02 m or 0.05 rad a step, so
    # this is its change of acceleration. None where no task took three steps.
    jerk: float | None
    # total of every policy call of the row, measured while `num_workers` processes ran beside each other: good for comparing
    # rows of one run, not for what a robot would see
    call_ms: Summary | None
    num_inferences: int
    num_control_steps: int  # of all chains and starts
    rollout_seconds: float  # wall-clock time of all chains and starts added up, and so over all workers
    num_workers: int  # of the call that finished the row
    # renderer, looks: what drew the images and what they showed, the same in all rows; no looks in older records
    renderer: str
    # decay of the temporal ensemble that was played, see `rfedge.runtimes.control.ensembling`; None without one
    ensemble: float | None = None
    # how often the loop's guard changed an action, by kind, over all steps
    interventions: dict[str, int] = Field(default_factory=dict)
    looks: str | None = None

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
    """Everything that was chosen, but for the rows."""

    environment: str
    mode: str | None  # the one asked for; None takes the natural one for each row
    num_chains: int  # 0 for none
    chains_sha256: str | None  # see `rfedge.envs.chains.chains_sha256`; None without chains
    starts_per_task: int  # 0 for none
    max_steps: int
    seed: int
    control_hz: float  # control steps per second
    # backend, threads: of every policy; threads per worker
    backend: str
    threads: int
    executor: str  # "processes" of this machine or "ray"
    # held-out sentences that no row got, because one of the bundles does not know them
    left_out_instructions: tuple[str, ...] = ()


class SuccessReport(Measurement):
    format: Literal["rfedge-success"] = "rfedge-success"
    schema_version: int = 1
    conditions: SuccessConditions
    policies: tuple[PolicyRecord, ...]
    rows: tuple[SuccessRow, ...]
    not_possible: tuple[NotPossible, ...]
    wall_seconds: float


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
    """Raise GateError unless every other row keeps this share of its reference's success, of chains or else of starts."""
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
