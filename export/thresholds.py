"""What an exported policy must hold before it may be called one: every gate of the exporter, in one place.

Order of judgement: the feature per step, then the seven numbers of the action and the hidden state over a rollout with
carried state. Actions are in normalised units: 1.0 is 20 mm or 0.05 rad in one control step.
"""

from __future__ import annotations

from typing import Final

from rfedge.config import Precision

__all__ = ["THRESHOLDS", "missed"]

# `min_` metrics must be at least, all others at most, the number.
THRESHOLDS: Final[dict[Precision, dict[str, float]]] = {
    "fp32": {
        "min_feature_cosine": 0.999999,
        "feature_relative_rms": 1e-4,
        "action_max_error": 1e-3,
        "gripper_flip_rate": 0.0,
        "hidden_max_drift": 1e-3,
    },
    "int8": {
        "min_feature_cosine": 0.99,
        "feature_relative_rms": 0.10,
        "action_max_error": 0.15,
        "gripper_flip_rate": 0.02,
        # Hidden units lie in [-1, 1]; a drift that matters shows in the action, so this one only catches a runaway.
        "hidden_max_drift": 0.50,
    },
}


def missed(metrics: dict[str, float], thresholds: dict[str, float]) -> list[str]:
    """Return one "name measured > allowed" text for every gate that is not met; NaN never meets a gate."""
    texts = []
    for name, limit in thresholds.items():
        value = metrics[name]
        met = value >= limit if name.startswith("min_") else value <= limit
        if not met:
            texts.append(f"{name} {value:.6g} (allowed {'>=' if name.startswith('min_') else '<='} {limit:g})")
    return texts
