"""The learning rate over a run: a linear warm-up, and constant (the paper) or a half cosine down to zero."""

from __future__ import annotations

import math
from typing import Final

from rfedge.train.config import ScheduleKind

# A run too short for its warm-up would never reach its learning rate.
_LONGEST_WARMUP_SHARE: Final = 0.1


def learning_rate_factor(kind: ScheduleKind, *, step: int, warmup_steps: int, progress: float) -> float:
    """Return the factor of the peak learning rate for `step` (from 0); `progress` is the share of the run that is done.

    The warm-up ends at a tenth of the run at the latest.

    >>> [round(learning_rate_factor("cosine", step=s, warmup_steps=4, progress=s / 50), 2) for s in (0, 1, 4, 25, 50)]
    [0.25, 0.5, 0.98, 0.5, 0.0]
    """
    warm = min(1.0, max((step + 1) / warmup_steps, progress / _LONGEST_WARMUP_SHARE)) if warmup_steps else 1.0
    # A product, not two phases: when time ends the run, nobody knows where on the cosine the warm-up will stop.
    fall = 1.0 if kind == "constant" else 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return warm * fall
