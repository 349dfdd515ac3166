"""The record of a loop measurement and the gates on it."""

from __future__ import annotations

from typing import Literal

from rfedge.errors import GateError
from rfedge.records.machine import Measurement
from rfedge.records.record import Record
from rfedge.records.statistics import Summary

__all__ = [
    "LoopReport",
    "MemoryPart",
    "OpenLoopRow",
    "OverheadPart",
    "RatePart",
    "assert_memory",
    "assert_misses",
    "assert_overhead_ms",
]


class OverheadPart(Record):
    """Milliseconds of a control step without backbone and head; `recorded_ms` with a recorder that writes every step."""

    loop_ms: Summary
    recorded_ms: Summary


class RatePart(Record):
    """How a rate was held.

    Attributes:
        wanted_hz, held_hz: control steps per second; held is over the whole part.
        num_late: steps that began late; `num_skipped` deadlines were left out for it.
        num_missed: steps whose action was not ready in time, `num_starved` of them because there was none.
        num_starting: steps before the first chunk.
        wake_lag_ms: from a deadline to the beginning of its step, of every step.
        age_ms: from taking a frame to sending the action it led to.
        max_age_steps: the same in control steps, at most.
    """

    backbone_ms: float
    duration_s: float
    wanted_hz: float
    held_hz: float
    num_steps: int
    num_inferences: int
    num_late: int
    num_skipped: int
    num_missed: int
    num_starved: int
    num_starting: int
    wake_lag_ms: Summary
    age_ms: Summary
    max_age_steps: int


class MemoryPart(Record):
    """Resident memory over a long run.

    Attributes:
        first_bytes: after the warm-up.
        last_bytes, max_bytes: of the samples after it.
        growth: (max - first) / first.
    """

    num_steps: int
    duration_s: float
    first_bytes: int
    last_bytes: int
    max_bytes: int
    growth: float


class OpenLoopRow(Record):
    """One line of the table: `total_ms` and `backbone_ms` are all time of all inferences over all control steps."""

    policy: str
    precision: str
    chunk_size: int
    execute_steps: int
    num_steps: int
    total_ms: float
    backbone_ms: float


class LoopReport(Measurement):
    """The whole document.

    Attributes:
        work: how the time of the timed backbone passed.
        realtime_priority: of the loop's thread while rates were held; None is ordinary.
        limits: whether actions were held to limits; they always are.
    """

    format: Literal["rfedge-loop"] = "rfedge-loop"
    schema_version: int = 1
    policy: str
    work: str
    realtime_priority: int | None = None
    limits: str = "0.01 m and 0.03 rad a step, workspace, watchdog"
    overhead: OverheadPart
    rate: RatePart
    overlapped: RatePart
    memory: MemoryPart
    open_loop: tuple[OpenLoopRow, ...]


def assert_overhead_ms(report: LoopReport, limit_ms: float) -> None:
    """Check the 99th percentile of the loop's own time.

    Raises:
        GateError: it is above the limit; the text has both.
    """
    measured_ms = report.overhead.loop_ms.p99
    if measured_ms > limit_ms:
        raise _missed("loop overhead", f"{measured_ms:.3f} ms (p99)", f"at most {limit_ms:g} ms")


def assert_misses(report: LoopReport, limit: int) -> None:
    """Check the steps that were late or missed while the rate was held, overlapped part included.

    Raises:
        GateError: there are more; the text has both numbers.
    """
    for name, part in (("rate", report.rate), ("overlapped", report.overlapped)):
        count = part.num_late + part.num_missed
        if count > limit:
            raise _missed(f"{name} of {part.wanted_hz:g} Hz", f"{count} late or missed steps", f"at most {limit}")


def assert_memory(report: LoopReport, limit: float) -> None:
    """Check the growth of resident memory.

    Raises:
        GateError: it is above the limit; the text has both.
    """
    if report.memory.growth > limit:
        raise _missed(f"memory over {report.memory.num_steps} steps", f"{report.memory.growth:+.2%}", f"at most {limit:.2%}")


def _missed(subject: str, got: str, expected: str) -> GateError:
    return GateError(subject, got=got, expected=expected, remedy="Measure on a quiet machine.")
