"""Choose the blocks that compute in int8: all that save time, less those whose error the budget cannot pay for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from rfedge.jobs.progress import Count

MOST_MEASUREMENTS: Final = 32

# a set of blocks in int8 -> whether the whole is within the budget
MeetsBudget = Callable[[frozenset[str]], bool]


def order_of_removal(saved_ms: Mapping[str, float], error: Mapping[str, float]) -> list[str]:
    """Return the blocks that save time, the one that pays worst first: most squared error per millisecond saved.

    Errors of blocks are nearly independent of each other, so their squares add up, and a budget is spent best in order of
    squares per millisecond.
    """
    saving = [block for block, saved in saved_ms.items() if saved > 0]
    return sorted(saving, key=lambda block: error[block] ** 2 / saved_ms[block], reverse=True)


def choose_plan(
    saved_ms: Mapping[str, float],
    error: Mapping[str, float],
    meets_budget: MeetsBudget,
    *,
    most_measurements: int = MOST_MEASUREMENTS,
    on_measurement: Count = lambda *_: None,
) -> frozenset[str]:
    """Return the blocks to compute in int8.

    Blocks leave the plan in the order of `order_of_removal` until the whole is within the budget; how many must leave is
    found by halving. Then each that left is tried again, what saves most first, as long as measurements are left: errors
    also cancel, which no measurement of single blocks foretells.

    Args:
        saved_ms: block -> milliseconds that int8 saves in it; where it saves none, the block stays in float.
        error: block -> error of the policy with that block alone in int8.
        meets_budget: measures a whole plan. It is not asked about the empty plan, which has no error.
        most_measurements: bound on the calls of `meets_budget`.
        on_measurement: called with (done, most).
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
