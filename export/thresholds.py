"""What an exported policy must hold before it may be called one: every gate of the exporter, in one place.

Order of judgement: the feature per step, then the seven numbers of the action and the hidden state over a rollout with
carried state. Actions are in normalised units: 1.0 is 20 mm or 0.05 rad in one control step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rfedge.config import Precision

# A `min_` metric is a least value, every other one a greatest, see `rfedge.bundle.gates`.
THRESHOLDS: Final[dict[Precision, dict[str, float]]] = {
    "fp32": {
        "min_feature_cosine": 0.999999,
        "feature_relative_rms": 1e-4,
        "action_max_error": 1e-3,
        "gripper_flip_rate": 0.0,
        "hidden_max_drift": 1e-3,
    },
    "fp16": {
        "min_feature_cosine": 0.9999,
        "feature_relative_rms": 0.01,
        "action_max_error": 0.02,
        "gripper_flip_rate": 0.005,
        "hidden_max_drift": 0.20,
    },
    "bf16": {
        "min_feature_cosine": 0.999,
        "feature_relative_rms": 0.03,
        "action_max_error": 0.06,
        "gripper_flip_rate": 0.005,
        "hidden_max_drift": 0.30,
    },
    "int8-weight": {
        "min_feature_cosine": 0.998,
        "feature_relative_rms": 0.06,
        "action_max_error": 0.10,
        "gripper_flip_rate": 0.01,
        "hidden_max_drift": 0.50,
    },
    "int4-weight": {
        "min_feature_cosine": 0.99,
        "feature_relative_rms": 0.08,
        "action_max_error": 0.15,  # of single steps; 99 of 100 stay below a third of it (docs/adr/0016)
        "gripper_flip_rate": 0.01,
        "hidden_max_drift": 0.50,
    },
    "int8": {
        "min_feature_cosine": 0.999,
        "feature_relative_rms": 0.02,
        # Rounding has a tail: of nine samples of 256 steps the worst was between 0.014 and 0.033 (docs/adr/0008).
        "action_max_error": 0.05,
        "gripper_flip_rate": 0.005,
        # Hidden units lie in [-1, 1].
        "hidden_max_drift": 0.20,
    },
}


# From the strictest gates to the loosest: each allows at least what the one before it does, in every metric.
FROM_STRICTEST: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8", "bf16", "int8-weight", "int4-weight")


def loosest_thresholds(precisions: Iterable[Precision]) -> Precision:
    """Return whose gates a backbone with these precisions is held to: those of the lowest, which are the loosest.

    bf16 counts as lower than int8: its 8 bits go to every activation, int8's ranges are fitted to each tensor.
    """
    return max(precisions, key=FROM_STRICTEST.index)


# What storing the head and the instruction table in fp16 adds to an action, whatever the backbone computes in.
STORAGE_ERROR: Final = 0.002


def mixed_thresholds(metric: str, limit: float) -> dict[str, float]:
    """Return the gates of a mixed plan: those of int8, and for the action the budget that it was searched for.

    Args:
        metric: that the budget is on, an `action_` metric of `compare_traces`.
        limit: the budget; `STORAGE_ERROR` comes on top.
    """
    kept = {
        name: value
        for name, value in THRESHOLDS["int8"].items()
        if metric != "action_max_error" or not name.startswith("action_")
    }
    return {**kept, metric: limit + STORAGE_ERROR}
