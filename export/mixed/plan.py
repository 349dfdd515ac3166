"""Choose the blocks that compute in int8: all that save time, less those whose error the budget cannot pay for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from rfedge.errors import ConfigError, did_you_mean
from rfedge.jobs.progress import Count

MOST_MEASUREMENTS: Final = 32

# a set of blocks in int8 -> whether the whole is within the budget
MeetsBudget = Callable[[frozenset[str]], bool]


def order_of_removal(saved_ms: Mapping[str, float], error: Mapping[str, float]) -> list[str]:
    """Return the blocks that save time, the one that pays worst first: most squared error per millisecond saved."""
    saving = [block for block, saved in saved_ms.items() if saved > 0]
    # Errors of blocks are nearly independent of each other, so their squares add up.
    return sorted(saving, key=lambda block: error[block] ** 2 / saved_ms[block], reverse=True)


def choose_plan(
    saved_ms: Mapping[str, float],
    error: Mapping[str, float],
    meets_budget: MeetsBudget,
    *,
    most_measurements: int = MOST_MEASUREMENTS,
    on_measurement: Count = lambda *_: None,
) -> frozenset[str]:
    """Return the blocks to compute in int8: blocks leave in `order_of_removal` until the whole is within the budget.

    How many must leave is found by halving; then each that left is tried again, for errors also cancel.
    """
    order = order_of_removal(saved_ms, error)
    num_done = 0

    def holds(blocks: Iterable[str]) -> bool:
        nonlocal num_done
        chosen = frozenset(blocks)
        if not chosen:
            return True
        result = meets_budget(chosen)
        num_done += 1
        on_measurement(num_done, most_measurements)
        return result

    if holds(order):
        return frozenset(order)
    # invariant: without the first `low` blocks the plan is over the budget, without the first `high` it is within
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(order[middle:]):
            high = middle
        else:
            low = middle
    plan = frozenset(order[high:])
    for block in sorted(order[:high], key=lambda name: saved_ms[name], reverse=True):
        if num_done >= most_measurements:
            break
        if holds(plan | {block}):
            plan |= {block}
    return plan


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
    """Read "action_error=0.01"; ConfigError for anything else."""
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
