"""When a measured number meets its gate: stated once, for the exporter that checks and for everybody who reports."""

from __future__ import annotations

import math
from collections.abc import Mapping


def is_met(name: str, value: float, limit: float) -> bool:
    """`min_` metrics must be at least, all others at most, the limit; NaN never meets a gate."""
    return value >= limit if name.startswith("min_") else value <= limit


def allowed(name: str, limit: float) -> str:
    """Return such as ">= 0.999" for a `min_` metric, "<= 0.05" for others."""
    return f"{'>=' if name.startswith('min_') else '<='} {limit:g}"


def missed(metrics: Mapping[str, float], thresholds: Mapping[str, float], *, num_actions: int | None = None) -> list[str]:
    """Return one "name measured (allowed <= limit)" for every gate that is not met.

    Of `num_actions` actions a missed rate says how many: "gripper_flip_rate 0.0078125, 1 of 128 (allowed <= 0.005)".
    """
    return [
        f"{name} {metrics[name]:.6g}{_counted(name, metrics[name], num_actions)} (allowed {allowed(name, limit)})"
        for name, limit in thresholds.items()
        if not is_met(name, metrics[name], limit)
    ]


def _counted(name: str, value: float, num_actions: int | None) -> str:
    if num_actions is None or not name.endswith("_rate") or not math.isfinite(value):
        return ""
    return f", {round(value * num_actions)} of {num_actions}"
