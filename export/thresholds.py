"""Thresholds that an exported policy must meet: every gate of the exporter, in one place.

Order of judgement: the feature per step, then the seven numbers of the action and the hidden state over a rollout with
carried state. Actions are in normalised units: 1.0 is 20 mm or 0.05 rad in one control step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rfedge.config import Precision

# A `min_` metric is a least value, every other one a greatest, see `rfedge.bundle.gates`.
_METRICS: Final = ("min_feature_cosine", "feature_relative_rms", "action_max_error", "gripper_flip_rate", "hidden_max_drift")
# From the strictest gates to the loosest: each allows at least what the one before it does, in every metric. Hidden units
# lie in [-1, 1]. int8's rounding has a tail: of nine samples of 256 steps the worst action error was between 0.014 and
# 0.033 (docs/adr/0008). int4's is of single steps; 99 of 100 stay below a third of it (docs/adr/0016).
_GATES: Final[dict[Precision, tuple[float, ...]]] = {
    "fp32": (0.999999, 1e-4, 1e-3, 0.0, 1e-3),
    "fp16": (0.9999, 0.01, 0.02, 0.005, 0.20),
    "int8": (0.999, 0.02, 0.05, 0.005, 0.20),
    "bf16": (0.999, 0.03, 0.06, 0.005, 0.30),
    "int8-weight": (0.998, 0.06, 0.10, 0.01, 0.50),
    "int4-weight": (0.99, 0.08, 0.15, 0.01, 0.50),
}
THRESHOLDS: Final = {precision: dict(zip(_METRICS, gates, strict=True)) for precision, gates in _GATES.items()}
FROM_STRICTEST: Final = tuple(THRESHOLDS)


def loosest_thresholds(precisions: Iterable[Precision]) -> Precision:
    """Return the precision whose gates are the loosest.

    bf16 counts as lower than int8: its 8 bits go to every activation, int8's ranges are fitted to each tensor.
    """
    return max(precisions, key=FROM_STRICTEST.index)


# What storing the head and the instruction table in fp16 adds to an action, whatever the backbone computes in.
STORAGE_ERROR: Final = 0.002


def mixed_thresholds(metric: str, limit: float) -> dict[str, float]:
    """Return the gates of a mixed plan: those of int8, and for the action the budget on `metric` plus `STORAGE_ERROR`."""
    kept = {
        name: value
        for name, value in THRESHOLDS["int8"].items()
        if metric != "action_max_error" or not name.startswith("action_")
    }
    return {**kept, metric: limit + STORAGE_ERROR}
