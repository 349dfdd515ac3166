"""The record of a latency measurement: dated, with machine, versions and commit, so that later reports can join it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from rfedge.benchmarks.latency.profile import CallProfile
from rfedge.records.machine import Measurement
from rfedge.records.record import Record
from rfedge.records.resources import ResourceRecord
from rfedge.records.statistics import Ratio, Summary


class LatencyConditions(Record):
    """Everything that was chosen."""

    instruction: str
    inputs: str
    execute_steps: int
    warmup: int  # untimed rounds, at least one window, so that the head is timed at its steady cost
    iterations: int
    settle_ms: float
    threads: int
    spinning: str
    realtime_priority: int | None = None  # of all threads; None for ordinary scheduling
    seed: int
    order: Literal["interleaved, shuffled per round"] = "interleaved, shuffled per round"
    environment: dict[str, str]


class VariantResult(Record):
    """One way to run the policy."""

    name: str
    # a bundle, the PyTorch original, or the first bundle once more (the noise floor)
    role: Literal["bundle", "torch", "noise-floor"]
    source: str
    policy: str
    precision: str
    block_precisions: dict[str, str]
    settings: dict[str, str]  # what the backbone's backend reported about itself
    size_bytes: int
    # growth of the process while this variant was loaded; pages shared with an earlier variant are not counted twice
    load_rss_bytes: int
    per_call_ms: dict[str, Summary]
    per_control_step_ms: dict[str, Summary]  # the same divided by execute_steps
    # while it was called in a row; absent where that was not asked for
    resources: ResourceRecord | None = None

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(write(self), "resources")


class Comparison(Record):
    """`baseline` over `variant` by median of `stage`: above 1, `variant` is faster."""

    variant: str
    baseline: str
    stage: str
    speedup: Ratio


class LatencyReport(Measurement):
    format: Literal["rfedge-latency"] = "rfedge-latency"
    schema_version: int = 1
    conditions: LatencyConditions
    peak_rss_bytes: int | None
    variants: tuple[VariantResult, ...]
    comparisons: tuple[Comparison, ...]
    noise_floor: Ratio
    # the machine before the variants were called in a row; absent where that was not asked for
    idle: ResourceRecord | None = None
    # of the bundles whose backends tell, operator by operator; absent where that was not asked for
    profiles: tuple[CallProfile, ...] | None = None

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(_without_none(write(self), "idle"), "profiles")


def _without_none(document: dict[str, Any], field: str) -> dict[str, Any]:
    """Leave out a field that older documents have not, so that they are written as they were."""
    return {name: value for name, value in document.items() if name != field or value is not None}
