"""Carries out one instruction in the control loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from rfedge.messages import ACTION_SIZE, FloatArray
from rfedge.runtimes.control.limits import MAX_STEPS
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.rollout.record import Goal, Rollout, RolloutRecord, jerk_square_sum


def roll_out(
    loop: ControlLoop,
    goal: Goal,
    *,
    max_steps: int = MAX_STEPS,
    success: Callable[[], bool] | None = None,
    instruction: Callable[[], str] | None = None,
    on_step: Callable[[ControlStep], None] | None = None,
    observe_every_step: bool = False,
    seed: int | None = None,
) -> Rollout:
    """Run the loop as `ControlLoop.run` does, with its arguments and errors, and gather what it did.

    `instruction` is asked before every step instead of the goal's own; `seed` is that of the start, for the record.
    """
    actions: list[FloatArray] = []
    timings_ms: dict[str, list[float]] = {}

    def gather(step: ControlStep) -> None:
        actions.append(step.sent)
        if step.inference is not None:
            for stage, duration_ms in step.inference.timings_ms.items():
                timings_ms.setdefault(stage, []).append(duration_ms)
        if on_step is not None:
            on_step(step)

    summary = loop.run(
        instruction or goal.instruction,
        max_steps=max_steps,
        success=success,
        on_step=gather,
        observe_every_step=observe_every_step,
    )
    sent = np.array(actions).reshape(-1, ACTION_SIZE)
    record = RolloutRecord(
        **{field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)},
        task=goal.task,
        instruction=goal.instruction,
        seed=seed,
        num_late=0 if loop.pace is None else loop.pace.num_late,
        num_skipped=0 if loop.pace is None else loop.pace.num_skipped,
        jerk_square_sum=jerk_square_sum(sent),
        call_ms=tuple(round(duration_ms, 3) for duration_ms in timings_ms["total"]) if "total" in timings_ms else None,
    )
    return Rollout(record, sent, timings_ms)
