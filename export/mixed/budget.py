"""`--budget action_error=0.01`: how far a mixed plan may move the action."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from rfedge.errors import ConfigError, did_you_mean

# what a user writes -> metric of `compare_traces`
_METRICS: Final = {
    "action_error": "action_max_error",
    "action_p99_error": "action_p99_error",
    "action_mean_error": "action_mean_error",
}


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `limit` of `metric` (of `compare_traces`), in normalised units: 1.0 is 20 mm or 0.05 rad."""

    metric: str
    limit: float

    def holds(self, metrics: dict[str, float]) -> bool:
        """Whether measured metrics are within the budget; NaN is not."""
        return metrics[self.metric] <= self.limit


def parse_budget(text: str) -> Budget:
    """Read "action_error=0.01".

    Raises:
        ConfigError: an unknown name, or no number of 0 or more.
    """
    name, equals, number = (part.strip() for part in text.partition("="))
    if not equals:
        raise _refusal(text, "NAME=NUMBER")
    if name not in _METRICS:
        raise _refusal(text, did_you_mean(name, _METRICS))
    try:
        limit = float(number)
    except ValueError:
        raise _refusal(text, "a number after =") from None
    if not (math.isfinite(limit) and limit >= 0):
        raise _refusal(text, "a number of 0 or more after =")
    return Budget(_METRICS[name], limit)


def _refusal(text: str, expected: str) -> ConfigError:
    return ConfigError("--budget", got=repr(text), expected=expected, remedy="Such as action_error=0.01.")
