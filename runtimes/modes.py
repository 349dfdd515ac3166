"""Closed loop and open loop as wrappers of one policy, so that the policy knows nothing of either.

Closed loop asks the policy on every control step. Open loop plays `execute_steps` actions of each predicted chunk
before it looks again, which divides the cost per control step by `execute_steps`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from rfedge.errors import ConfigError, did_you_mean, explain
from rfedge.messages import Observation
from rfedge.runtimes.policy import Policy, PolicyStep

__all__ = ["MODES", "ClosedLoop", "ControlStep", "Controller", "OpenLoop", "check_execute_steps", "make_controller"]

logger = logging.getLogger(__name__)
MODES: Final = ("closed-loop", "open-loop")


@dataclass(frozen=True, slots=True, eq=False)
class ControlStep:
    """The action of one control step.

    Attributes:
        action: float32 (7,).
        inference: the policy call behind it, or None when the action was left of an earlier chunk.
    """

    action: npt.NDArray[np.float32]
    inference: PolicyStep | None


class Controller(Protocol):
    """Gives one action per control step."""

    @property
    def needs_observation(self) -> bool:
        """Whether the next `control` call looks at its frame; if not, the frame need not be taken or rendered."""

    def reset(self, instruction: str) -> None:
        """Begin a new instruction."""

    def control(self, observation: Observation | None) -> ControlStep:
        """Return the next action; `observation` may be None when `needs_observation` is false."""


class OpenLoop:
    """Plays the first `execute_steps` actions of each chunk before the next inference.

    Args:
        policy: what predicts the chunks.
        execute_steps: 1 to the policy's chunk size.

    Raises:
        ConfigError: `execute_steps` lies outside that range.
    """

    def __init__(self, policy: Policy, execute_steps: int) -> None:
        check_execute_steps(execute_steps, policy.chunk_size)
        _warn_of_time_base(execute_steps, policy.frame_stride)
        self._policy = policy
        self._execute_steps = execute_steps
        self._pending: list[npt.NDArray[np.float32]] = []

    @property
    def needs_observation(self) -> bool:
        return not self._pending

    def reset(self, instruction: str) -> None:
        """Drop the rest of the chunk and reset the policy."""
        self._pending = []
        self._policy.reset(instruction)

    def control(self, observation: Observation | None) -> ControlStep:
        """Return the next action of the chunk, asking the policy for a new chunk when none is left.

        Raises:
            ContractError: the policy refuses the frame.
        """
        inference = None
        if not self._pending:
            inference = self._policy.act(_require_frame(observation))
            self._pending = list(inference.actions[: self._execute_steps])
        return ControlStep(action=self._pending.pop(0), inference=inference)


class ClosedLoop:
    """Asks the policy on every control step and plays the first action of its answer.

    Args:
        policy: what predicts the actions.
    """

    def __init__(self, policy: Policy) -> None:
        _warn_of_time_base(1, policy.frame_stride)
        self._policy = policy

    @property
    def needs_observation(self) -> bool:
        return True

    def reset(self, instruction: str) -> None:
        """Reset the policy."""
        self._policy.reset(instruction)

    def control(self, observation: Observation | None) -> ControlStep:
        """Return the first action of a new inference.

        Raises:
            ContractError: the policy refuses the frame.
        """
        inference = self._policy.act(_require_frame(observation))
        return ControlStep(action=inference.actions[0], inference=inference)


def make_controller(policy: Policy, mode: str, execute_steps: int | None = None) -> Controller:
    """Wrap `policy` in the loop called `mode`.

    Args:
        policy: what predicts the actions.
        mode: one of `MODES`.
        execute_steps: actions played per inference; None is 1 in closed loop and the whole chunk in open loop.

    Raises:
        ConfigError: the mode is unknown, or `execute_steps` does not fit the mode or the policy.
    """
    if mode not in MODES:
        raise ConfigError(
            explain("mode", got=repr(mode), expected=did_you_mean(mode, MODES), remedy="Choose one of these names.")
        )
    if mode == "open-loop":
        return OpenLoop(policy, policy.chunk_size if execute_steps is None else execute_steps)
    if execute_steps not in (None, 1):
        raise ConfigError(
            explain("execute_steps", got=execute_steps, expected="1 in closed-loop mode", remedy="Pass --mode open-loop.")
        )
    return ClosedLoop(policy)


def check_execute_steps(execute_steps: int, chunk_size: int) -> None:
    """Raise ConfigError unless `1 <= execute_steps <= chunk_size`."""
    if not 1 <= execute_steps <= chunk_size:
        raise ConfigError(
            explain(
                "execute_steps",
                got=execute_steps,
                expected=f"1 to {chunk_size} (chunk_size)",
                remedy="Choose --execute-steps in that range, or a policy trained with a longer chunk.",
            )
        )


def _require_frame(observation: Observation | None) -> Observation:
    if observation is None:
        raise RuntimeError("the controller needs an observation now; ask needs_observation first")
    return observation


def _warn_of_time_base(execute_steps: int, frame_stride: int) -> None:
    if execute_steps == frame_stride:
        return
    if frame_stride > 1:
        logger.warning(
            "execute_steps is %d but the policy was trained on frames %d control steps apart: "
            "its recurrent head sees another time base than in training.",
            execute_steps,
            frame_stride,
        )
    else:
        logger.warning(
            "open loop with execute_steps %d on a policy trained with frame_stride 1: "
            "the RoboFlamingo paper reports a loss in success for this (Fig. 3c).",
            execute_steps,
        )
