"""Carries out one instruction in the control loop, by a policy or an expert; its record is what reports keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from rfedge.messages import ACTION_SIZE, POSE_SIZE, FloatArray, Observation
from rfedge.runtimes.control.limits import MAX_STEPS
from rfedge.runtimes.control.loop import ControlLoop, LoopSummary
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.control.robot import SimulatedRobot

if TYPE_CHECKING:
    from rfedge.envs import Environment
    from rfedge.envs.experts import Expert


@dataclass(frozen=True, slots=True)
class Goal:
    """The instruction of the policy, and the task by which success is decided; None where nobody can decide."""

    instruction: str
    task: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord(LoopSummary):
    """One rollout; its size does not depend on its length, but for the times of the calls."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    task: str | None  # see `Goal`
    instruction: str
    seed: int | None = None  # of the start; None for one that goes on where another ended
    num_late: int = 0  # steps that began late, where a rate was held
    num_skipped: int = 0  # deadlines left out
    # squares of a[t+1] - 2 a[t] + a[t-1] over the steps and the six pose components of the actions sent
    jerk_square_sum: float = 0.0
    call_ms: tuple[float, ...] | None = None  # total of every policy call; None where nobody timed one


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One rollout with everything it did."""

    record: RolloutRecord  # what reports keep of it
    actions: FloatArray  # (step, 7), as the robot got them
    timings_ms: dict[str, list[float]]  # by `rfedge.runtimes.policy.step.STAGES`, one value per policy call


def roll_out(
    loop: ControlLoop,
    goal: Goal,
    *,
    max_steps: int = MAX_STEPS,
    success: Callable[[], bool] | None = None,
    instruction: Callable[[], str] | None = None,
    on_step: Callable[[ControlStep], None] = lambda _: None,
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
        on_step(step)

    summary = loop.run(
        instruction or goal.instruction,
        max_steps=max_steps,
        success=success,
        on_step=gather,
        observe_every_step=observe_every_step,
    )
    sent = np.array(actions).reshape(-1, ACTION_SIZE)
    jerks = np.diff(np.asarray(sent, dtype=np.float64)[:, :POSE_SIZE], n=2, axis=0)
    record = RolloutRecord(
        **{field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)},
        task=goal.task,
        instruction=goal.instruction,
        seed=seed,
        num_late=0 if loop.pace is None else loop.pace.num_late,
        num_skipped=0 if loop.pace is None else loop.pace.num_skipped,
        jerk_square_sum=float(np.square(jerks).sum()),
        call_ms=tuple(round(duration_ms, 3) for duration_ms in timings_ms["total"]) if "total" in timings_ms else None,
    )
    return Rollout(record, sent, timings_ms)


class StandingSimulator(SimulatedRobot):
    """A simulated robot whose time passes with actions alone, so that a rollout goes on exactly where the last one ended."""

    def stop(self) -> None:
        """Do nothing: nothing moves until the next action."""


class ExpertController:
    """A scripted expert in a policy's place, a new one for every rollout; it reads states and renders nothing."""

    def __init__(self, expert: Expert, environment: Environment) -> None:
        self._expert = expert
        self._environment = environment

    @property
    def needs_observation(self) -> bool:
        return False

    def reset(self, instruction: str) -> None:
        """Do nothing: an expert knows one task."""

    def control(self, observation: Observation | None) -> ControlStep:
        """Return the expert's answer to the present states, in its own double precision, which a simulator gets."""
        action = self._expert.act(self._environment.robot_state(), self._environment.scene_state())
        return ControlStep(action=cast("npt.NDArray[np.float32]", action), inference=None)

    def close(self) -> None:
        """Do nothing: nothing runs beside the loop."""
