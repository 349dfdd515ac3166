"""What a rollout is asked for and what it amounts to; reports hold its record as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from rfedge.messages import POSE_SIZE, FloatArray
from rfedge.runtimes.control.loop import LoopSummary


@dataclass(frozen=True, slots=True)
class Goal:
    """The instruction of the policy, and the task by which success is decided; None where nobody can decide."""

    instruction: str
    task: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord(LoopSummary):
    """One rollout; its size does not depend on its length, but for the times of the calls.

    Attributes:
        task, instruction: see `Goal`.
        seed: of the start; None for one that goes on where another ended.
        num_late, num_skipped: steps that began late and deadlines left out, where a rate was held.
        jerk_square_sum: squares of a[t+1] - 2 a[t] + a[t-1] added up over the steps and the six pose components of the
            actions sent.
        call_ms: total of every policy call, in milliseconds; None where nobody timed one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    task: str | None
    instruction: str
    seed: int | None = None
    num_late: int = 0
    num_skipped: int = 0
    jerk_square_sum: float = 0.0
    call_ms: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One rollout with everything it did.

    Attributes:
        record: what reports keep of it.
        actions: float (step, 7), as the robot got them.
        timings_ms: per stage of `rfedge.runtimes.policy.step.STAGES`, one value per policy call.
    """

    record: RolloutRecord
    actions: FloatArray
    timings_ms: dict[str, list[float]]


def jerk_square_sum(actions: npt.ArrayLike) -> float:
    """Return what `RolloutRecord` keeps of actions (step, 7)."""
    jerks = np.diff(np.asarray(actions, dtype=np.float64)[:, :POSE_SIZE], n=2, axis=0)
    return float(np.square(jerks).sum())
