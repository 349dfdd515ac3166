"""Predicted latency: a stage takes as long as its arithmetic or its memory traffic, whichever is longer.

A prediction leaves out what it cannot know: launches, reformats, caches, what a camera or a simulator takes. For small
policies these are most of the time; a measured number is always the better one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from rfedge.runtimes.roofline.devices import Device
from rfedge.runtimes.roofline.work import STAGES, Arithmetic, PolicyWork, Stage, Sums

__all__ = ["LAUNCH_US", "Prediction", "StagePrediction", "predict", "predict_sums"]


# One kernel launch on an NVIDIA GPU, order of magnitude; CUDA graphs take most of it away.
LAUNCH_US: Final = 5


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """One stage on one device: milliseconds, and what they are spent on."""

    compute_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        """The longer of the two: they overlap."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def bound(self) -> Literal["compute", "memory"]:
        """Which of the two it is."""
        return "compute" if self.compute_ms >= self.memory_ms else "memory"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One policy call on one device.

    Attributes:
        substitutes: arithmetic that the device lacks -> what it would use instead.
        needed_bytes: weights, tables and the largest activations.
        free_bytes: memory of the device that is left for them.
    """

    device: Device
    stages: dict[Stage, StagePrediction]
    substitutes: dict[Arithmetic, Arithmetic]
    needed_bytes: int
    free_bytes: int

    @property
    def total_ms(self) -> float:
        """One policy call, stage after stage."""
        return sum(stage.ms for stage in self.stages.values())

    @property
    def fits(self) -> bool:
        """Whether the policy fits into the memory that is free."""
        return self.needed_bytes <= self.free_bytes


def predict(work: PolicyWork, device: Device) -> Prediction:
    """Predict one policy call of `work` on `device`, with the device's efficiency."""
    macs_by_arithmetic = work.total().macs_by_arithmetic
    return Prediction(
        device=device,
        stages={stage: predict_sums(work.stage(stage), device) for stage in STAGES},
        substitutes={wanted: used for wanted in macs_by_arithmetic if (used := device.rate(wanted)[0]) != wanted},
        needed_bytes=work.memory_bytes,
        free_bytes=max(device.memory_bytes - device.reserved_bytes, 0),
    )


def predict_sums(sums: Sums, device: Device) -> StagePrediction:
    """Predict what takes these operations and this traffic on `device`."""
    compute_s = sum(2 * macs / device.rate(arithmetic)[1] for arithmetic, macs in sums.macs_by_arithmetic.items())
    memory_s = sums.traffic_bytes / device.bandwidth
    return StagePrediction(
        compute_ms=1e3 * compute_s / device.efficiency.compute, memory_ms=1e3 * memory_s / device.efficiency.memory
    )
