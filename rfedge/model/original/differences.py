"""Differences between arrays of the original and ours, gathered by stage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from rfedge.arrays import Array
from rfedge.model.original.plan import WeightsReport

HIDDEN_TOLERANCE: Final = 2e-4
ACTION_TOLERANCE: Final = 5e-5
GRADIENT_TOLERANCE: Final = 1e-4  # relative
# Below this a gradient's norm is rounding, and no ratio of two of them says anything.
_SMALLEST_GRADIENT: Final = 1e-6

# First match names the stage of an array, and its tolerance.
_STAGES: Final = (
    (r"in/vision_.*", "images", HIDDEN_TOLERANCE),
    (r"vit.*", "vision transformer", HIDDEN_TOLERANCE),
    (r"perceiver/layer(\d+)/.*", r"resampler layer \1", HIDDEN_TOLERANCE),
    (r"perceiver.*|vis_x", "resampler", HIDDEN_TOLERANCE),
    (r"lm/layer(\d+)/xattn.*", r"cross-attention \1", HIDDEN_TOLERANCE),
    (r"lm/layer(\d+)/out", r"decoder layer \1", HIDDEN_TOLERANCE),
    (r"lm/final_norm", "final norm", HIDDEN_TOLERANCE),
    (r"lm/hidden_states", "hidden states", HIDDEN_TOLERANCE),
    (r"lm/logits|step_logits", "logits", HIDDEN_TOLERANCE),
    (r"lm/loss", "language loss", HIDDEN_TOLERANCE),
    (r"tokens", "generated tokens", 0.0),
    (r"head_in", "feature tokens", HIDDEN_TOLERANCE),
    (r"rnn_in", "pooled feature", HIDDEN_TOLERANCE),
    (r"rnn_out|rnn_last_out|h_n|c_n", "LSTM", HIDDEN_TOLERANCE),
    (r"pose", "pose", ACTION_TOLERANCE),
    (r"gripper", "gripper", ACTION_TOLERANCE),
    (r"action_float16", "executed action", 2.0**-10),  # one step of float16 below 1: a tie may round either way
    (r"loss", "loss", ACTION_TOLERANCE),
    (r"hidden_state_kept_after", "time-keeping", 0.0),
)


@dataclass(slots=True)
class StageDifference:
    """The worst difference of a stage over all its arrays; `relative` ones are divided by the original's value."""

    stage: str
    tolerance: float
    relative: bool = False
    worst: float = 0.0
    worst_array: str = ""
    num_arrays: int = 0

    @property
    def passed(self) -> bool:
        """Whether the worst difference is within the tolerance; it is infinite for a NaN or another size."""
        return self.worst <= self.tolerance


@dataclass(slots=True)
class ParityReport:
    fixture: str
    weights: WeightsReport
    stages: list[StageDifference]  # in the order of the forward pass
    not_compared: list[str]  # arrays of the fixture for which nothing is computed here

    @property
    def passed(self) -> bool:
        """Whether every stage is within its tolerance and every tensor found its place."""
        complete = not self.weights.missing and not self.weights.left_over
        return complete and bool(self.stages) and all(stage.passed for stage in self.stages)


@dataclass(slots=True)
class Differences:
    """Compares arrays with those of a fixture and remembers which were compared."""

    expected: dict[str, Array]
    stages: dict[str, StageDifference] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)

    def add(self, case: str, name: str, ours: torch.Tensor | Array, *, where: Any = None) -> None:
        """Compare with `case/name`, where the fixture has it; only the shape of `ours` may differ.

        Without `where`, bool (N, T), all tokens count.
        """
        key = f"{case}/{name}"
        if key not in self.expected:
            return
        theirs = self.expected[key]
        actual = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
        if actual.size != theirs.size:
            difference = float("inf")
        else:
            left, right = actual.reshape(theirs.shape).astype(np.float64), theirs.astype(np.float64)
            if where is not None:
                left, right = (x[:, where] if x.ndim == 4 else x[where] for x in (left, right))
            difference = float(np.abs(left - right).max(initial=0.0))
            difference = float("inf") if np.isnan(difference) else difference
        for pattern, stage, tolerance in _STAGES:
            if match := re.fullmatch(pattern, name):
                prefix = "step: " if case == "step" else ""
                self._keep(prefix + match.expand(stage), tolerance, key, difference)
                self.compared.add(key)
                return

    def add_gradient(self, name: str, ours: float | None, theirs: float | None) -> None:
        """Compare the norm of one gradient; None stands for a tensor that nothing reaches."""
        actual, expected = ours or 0.0, theirs or 0.0
        relative = abs(actual - expected) / max(abs(expected), _SMALLEST_GRADIENT)
        self._keep("gradient norms", GRADIENT_TOLERANCE, name, relative, relative=True)

    def _keep(self, stage: str, tolerance: float, key: str, difference: float, *, relative: bool = False) -> None:
        row = self.stages.setdefault(stage, StageDifference(stage, tolerance, relative))
        row.num_arrays += 1
        if difference > row.worst or not row.worst_array:
            row.worst, row.worst_array = difference, key
