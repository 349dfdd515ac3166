"""The record of what each precision of a policy weighs, changes and takes."""

from __future__ import annotations

from typing import Literal

from rfedge.benchmarks.latency.engine_build import EngineResult
from rfedge.records.machine import Measurement
from rfedge.records.record import Record
from rfedge.records.statistics import Ratio, Summary

__all__ = ["EngineRow", "PrecisionRow", "PrecisionsReport"]


class PrecisionRow(Record):
    """One form.

    Attributes:
        keep_float: what was asked to stay in fp32; None where the precision chose.
        budget: of a mixed plan, on the largest action error.
        bundle_bytes: what has to be on the robot.
        backbone_bytes: of the backbone that TensorRT reads, weights included.
        metrics: of the exporter's proof against PyTorch, with carried state.
        passed: whether it met every gate of its precision; where not, the bundle was forced.
        proved_on: the proof's inputs.
        not_timed: why this CPU cannot run it.
        load_rss_bytes: growth of the process while it was loaded.
        call_ms, backbone_ms: a whole policy call, and the backbone's share.
        speedup, backbone_speedup: of the medians over fp32; None for fp32 itself.
    """

    name: str
    precision: str
    keep_float: tuple[str, ...] | None
    budget: float | None
    bundle_bytes: int
    backbone_bytes: int
    metrics: dict[str, float]
    passed: bool
    forced: bool
    proved_on: str
    not_timed: str | None = None
    load_rss_bytes: int | None = None
    call_ms: Summary | None = None
    backbone_ms: Summary | None = None
    speedup: Ratio | None = None
    backbone_speedup: Ratio | None = None


class EngineRow(Record):
    """The engine of one form's backbone, or why there is none."""

    name: str
    engine: EngineResult | None
    failed: str | None = None


class PrecisionsReport(Measurement):
    """The whole document.

    Attributes:
        noise_floor: fp32 over itself, of whole calls.
        engines: empty where none were asked for or no builder is installed, see `no_engines`.
    """

    format: Literal["rfedge-precisions"] = "rfedge-precisions"
    schema_version: int = 1
    policy: str
    checkpoint_sha256: str
    calibration_frames: int
    parity_steps: int
    instruction: str
    warmup: int
    iterations: int
    settle_ms: float
    threads: int
    spinning: str
    seed: int
    rows: tuple[PrecisionRow, ...]
    noise_floor: Ratio
    engines: tuple[EngineRow, ...]
    no_engines: str | None

    def row(self, name: str) -> PrecisionRow:
        """Return the row called `name`."""
        return next(row for row in self.rows if row.name == name)
