"""Predicted latency, as a range: a MatMul takes as long as its arithmetic or its memory traffic, and no less than a launch.

The low end has the best share of the peaks that published calls reached, every elementwise operation fused and the cheapest
launches; the high end has the worst share, a launch for every operator, and weights that are turned into floats before their
MatMul. A measured number is always better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from rfedge.runtimes.roofline.devices import Device
from rfedge.runtimes.roofline.work import STAGES, Arithmetic, MatMul, PolicyWork, Stage, Sums

_FLOAT_BYTES: Final = 4
Bound = Literal["launches", "compute", "memory"]


@dataclass(frozen=True, slots=True)
class StagePrediction:
    low_ms: float
    high_ms: float
    bound: Bound  # what most of the low end is spent on


@dataclass(frozen=True, slots=True)
class Prediction:
    """One policy call on one device."""

    device: Device
    stages: dict[Stage, StagePrediction]
    substitutes: dict[Arithmetic, Arithmetic]  # arithmetic that the device lacks -> what it would use instead
    needed_bytes: int  # weights, tables and the largest activations
    free_bytes: int  # memory of the device that is left for them

    @property
    def low_ms(self) -> float:
        return sum(stage.low_ms for stage in self.stages.values())

    @property
    def high_ms(self) -> float:
        return sum(stage.high_ms for stage in self.stages.values())

    @property
    def middle_ms(self) -> float:
        """The geometric middle of the range: as far from either end, as a ratio."""
        return float((self.low_ms * self.high_ms) ** 0.5)

    @property
    def longest(self) -> Stage:
        return max(self.stages, key=lambda stage: self.stages[stage].low_ms)

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.free_bytes


def predict(work: PolicyWork, device: Device) -> Prediction:
    macs_by_arithmetic = work.total().macs_by_arithmetic
    return Prediction(
        device=device,
        stages={stage: _predict_stage(work, stage, device) for stage in STAGES},
        substitutes={wanted: used for wanted in macs_by_arithmetic if (used := device.rate(wanted)[0]) != wanted},
        needed_bytes=work.memory_bytes,
        free_bytes=max(device.memory_bytes - device.reserved_bytes, 0),
    )


def limit_ms(sums: Sums, device: Device) -> float:
    """Return what the device's full peaks would need for these operations and this traffic, without launches."""
    return max(_times_ms(sums.macs_by_arithmetic, sums.traffic_bytes, device, 1.0))


def _predict_stage(work: PolicyWork, stage: Stage, device: Device) -> StagePrediction:
    spent: dict[Bound, float] = {"launches": 0.0, "compute": 0.0, "memory": 0.0}
    high_ms = work.operators.get(stage, 0) * device.most_launch_us / 1e3
    for matmul in work.matmuls:
        if matmul.stage != stage:
            continue
        compute_ms, memory_ms = _matmul_ms(matmul, device, device.best)
        times: dict[Bound, float] = {"launches": device.least_launch_us / 1e3, "compute": compute_ms, "memory": memory_ms}
        bound = max(times, key=lambda name: times[name])
        spent[bound] += times[bound]
        high_ms += max(_matmul_ms(matmul, device, device.worst))
        if matmul.label.endswith("-weight"):  # weights that a kernel of their own writes and the MatMul reads as floats
            high_ms += 1e3 * 2 * _FLOAT_BYTES * matmul.parameters / device.bandwidth
    low_ms = sum(spent.values())
    return StagePrediction(low_ms, max(low_ms, high_ms), max(spent, key=lambda name: spent[name]))


def _matmul_ms(matmul: MatMul, device: Device, share: float) -> tuple[float, float]:
    traffic_bytes = matmul.weight_bytes + matmul.activation_bytes
    return _times_ms({matmul.arithmetic: matmul.macs}, traffic_bytes, device, share)


def _times_ms(macs: dict[Arithmetic, int], traffic_bytes: int, device: Device, share: float) -> tuple[float, float]:
    """Return milliseconds of (arithmetic, memory) at a share of the peaks."""
    compute_s = sum(2 * count / device.rate(arithmetic)[1] for arithmetic, count in macs.items())
    return 1e3 * compute_s / share, 1e3 * traffic_bytes / device.bandwidth / share
