"""Drives a controller through an environment or robot until success or the last step, and records what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rfedge.errors import ContractError, explain
from rfedge.messages import ACTION_SIZE, GRIPPER_CLOSE, GRIPPER_OPEN, POSE_SIZE, FloatArray, Observation
from rfedge.runtimes.clock import RateKeeper
from rfedge.runtimes.modes import Controller, ControlStep

__all__ = ["Plant", "RolloutResult", "StepReport", "drive", "guard_action"]


class Plant(Protocol):
    """What is controlled: the part of `rfedge.envs.Environment` that a real robot has too."""

    def observe(self) -> Observation:
        """Return the present frame of both cameras."""

    def advance(self, action: npt.NDArray[np.float64]) -> None:
        """Run one control step of a relative action (7,)."""


@dataclass(frozen=True, slots=True, eq=False)
class StepReport:
    """One control step, as told to `on_step` after it ran.

    Attributes:
        index: from 0.
        observation: the frame before the action; None when nobody needed one.
        control: the action and, if there was one, the inference behind it.
        lag_s: how late the step began, in seconds; 0.0 without a rate keeper.
    """

    index: int
    observation: Observation | None
    control: ControlStep
    lag_s: float


@dataclass(frozen=True, slots=True, eq=False)
class RolloutResult:
    """One instruction from reset to end.

    Attributes:
        success: whether it succeeded; None when nobody judged.
        num_steps: control steps run.
        num_inferences: policy calls made.
        timings_ms: per stage, one value per inference.
        actions: float32 (step, 7), as the plant got them.
        num_late, num_skipped: steps that began late and deadlines left out, with a rate keeper.
        max_lag_s: the latest beginning of a step.
        seed: the seed of the episode, if it had one.
    """

    success: bool | None
    num_steps: int
    num_inferences: int
    timings_ms: dict[str, list[float]]
    actions: npt.NDArray[np.float32]
    num_late: int = 0
    num_skipped: int = 0
    max_lag_s: float = 0.0
    seed: int | None = None


def drive(
    controller: Controller,
    plant: Plant,
    instruction: str,
    *,
    max_steps: int,
    success: Callable[[], bool] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    rate_keeper: RateKeeper | None = None,
    observe_every_step: bool = False,
    seed: int | None = None,
) -> RolloutResult:
    """Run one instruction; the caller has put the plant into its initial state.

    Frames are taken only when the controller looks at them: in open loop that saves rendering them.

    Args:
        controller: reset here with `instruction`.
        plant: what the actions go to, each finite, clamped and with gripper -1 or 1.
        instruction: plain words.
        max_steps: control steps before giving up.
        success: asked after each step; None when nobody can judge.
        on_step: told about each step after it ran, for progress bars and recorders.
        rate_keeper: holds the control rate; None runs as fast as it goes.
        observe_every_step: take a frame on every step for `on_step`, needed or not.
        seed: copied into the result.

    Raises:
        ContractError: the policy refuses a frame or the controller's action is not finite; no action is sent then.
    """
    controller.reset(instruction)
    actions: list[npt.NDArray[np.float32]] = []
    timings_ms: dict[str, list[float]] = {}
    num_inferences, max_lag_s = 0, 0.0
    succeeded: bool | None = None if success is None else False
    for index in range(max_steps):
        lag_s = 0.0 if rate_keeper is None else rate_keeper.wait()
        max_lag_s = max(max_lag_s, lag_s)
        observation = plant.observe() if controller.needs_observation or observe_every_step else None
        control = controller.control(observation)
        if control.inference is not None:
            num_inferences += 1
            for stage, duration_ms in control.inference.timings_ms.items():
                timings_ms.setdefault(stage, []).append(duration_ms)
        action = guard_action(control.action)
        plant.advance(action.astype(np.float64))
        actions.append(action)
        if on_step is not None:
            on_step(StepReport(index=index, observation=observation, control=control, lag_s=lag_s))
        if success is not None and success():
            succeeded = True
            break
    return RolloutResult(
        success=succeeded,
        num_steps=len(actions),
        num_inferences=num_inferences,
        timings_ms=timings_ms,
        actions=np.array(actions, dtype=np.float32).reshape(-1, ACTION_SIZE),
        num_late=0 if rate_keeper is None else rate_keeper.num_late,
        num_skipped=0 if rate_keeper is None else rate_keeper.num_skipped,
        max_lag_s=max_lag_s,
        seed=seed,
    )


def guard_action(action: FloatArray) -> npt.NDArray[np.float32]:
    """Return a safe copy of an action (7,): pose clamped to [-1, 1], gripper -1 or 1 by its sign.

    Raises:
        ContractError: it has another shape or is not finite.
    """
    if action.shape != (ACTION_SIZE,):
        raise ContractError(
            explain("action", got=f"shape {action.shape}", expected=f"({ACTION_SIZE},)", remedy="Return one control step.")
        )
    if not np.isfinite(action).all():
        raise ContractError(
            explain(
                "action", got="NaN or Inf", expected="finite values", remedy="The robot was not moved; check the policy."
            )
        )
    safe = np.clip(action, -1.0, 1.0).astype(np.float32)
    safe[POSE_SIZE] = GRIPPER_OPEN if action[POSE_SIZE] > 0 else GRIPPER_CLOSE
    return safe
