"""Records of a sweep: success and latency joined for every precision, number of played steps and kind of training."""

from __future__ import annotations

from typing import Final, Literal

from rfedge.benchmarks.records.schema import LatencyReport
from rfedge.benchmarks.success.report import SuccessReport
from rfedge.records.machine import Measurement
from rfedge.records.record import Record
from rfedge.records.statistics import Summary

SWEEP_SCHEMA_VERSION: Final = 1


class SweepRow(Record):
    """What the latency adds to one row of the success.

    Attributes:
        variant: name of the latency report's variant.
        per_call_ms: total of a policy call, measured alone in one process.
        per_control_step_ms: the same divided by execute_steps.
        completion_s: mean time of a solved task, see `SuccessRow.mean_solved_steps`, at the control rate, as if a call took
            no longer than a control step; None when none was solved.
        synchronous_completion_s: the same when the robot waits for every call of median length.
    """

    row: str
    variant: str
    per_call_ms: Summary
    per_control_step_ms: Summary
    completion_s: float | None
    synchronous_completion_s: float | None
    jerk: float | None


class SweepReport(Measurement):
    """The whole document.

    Attributes:
        success: of every combination; those that are not possible are in its `not_possible`.
        latency: of every bundle, measured after the rollouts and beside none.
        rows: one for each of `success.rows`, in their order.
    """

    format: Literal["rfedge-sweep"] = "rfedge-sweep"
    schema_version: int = SWEEP_SCHEMA_VERSION
    success: SuccessReport
    latency: LatencyReport
    rows: tuple[SweepRow, ...]
