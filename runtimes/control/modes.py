"""The loops around one policy, so that the policy knows nothing of them; each wraps the one below.

closed-loop   asks the policy on every control step
open-loop     plays `execute_steps` actions of each predicted chunk before it looks again, which divides the cost per
              control step by `execute_steps`
jump-step     open loop at the stride that the policy was trained on
overlapped    open loop whose next inference runs beside the loop, see `rfedge.runtimes.control.overlapped`

Any of the first three can ask an ensemble instead of the policy itself, see `rfedge.runtimes.control.ensembling`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from rfedge.arrays import Float32
from rfedge.errors import ConfigError
from rfedge.messages import ACTION_SIZE, Observation
from rfedge.robot.conventions import Conventions, conventions_of
from rfedge.runtimes.policy.step import Policy, PolicyStep

__all__ = [
    "ClosedLoop",
    "ControlStep",
    "Controller",
    "JumpStep",
    "OpenLoop",
    "check_execute_steps",
    "check_jumps",
    "warn_of_time_base",
]

logger = logging.getLogger(__name__)
# starting: the first chunk after a reset is on its way. starved: the chunk is used up and the next has not arrived.
# unavailable: the policy had no answer, see `PolicyUnavailableError`.
Missing = Literal["starting", "starved", "unavailable"]


@dataclass(frozen=True, slots=True, eq=False)
class ControlStep:
    """One control step: what the controller answered, then what the loop did with it, as `on_step` receives it."""

    action: Float32  # (7,); zero motion with the gripper kept where there is none to play
    inference: PolicyStep | None  # arrived in this step; None when the action was left of a chunk
    age_steps: int = 0  # control steps since the frame behind the action was taken
    missing: Missing | None = None  # why there is no action to play
    pending_s: float = 0.0  # how long an inference beside the loop has been running
    index: int = 0
    observation: Observation | None = None  # before the action; None when nobody needed one
    # (7,), what the robot got; float64 where the controller computes so
    sent: Float32 = field(default_factory=lambda: np.zeros(ACTION_SIZE, np.float32))
    interventions: tuple[str, ...] = ()  # those of `rfedge.runtimes.control.safety.INTERVENTIONS` that changed the action
    lag_s: float = 0.0  # how late the step began
    overdue_s: float = 0.0  # how long after the next step's deadline the action was ready
    is_missed: bool = False  # overdue, or there was no action to send and the run was not just starting
    age_ms: float = 0.0  # from the frame behind the action until it was sent
    elapsed_ms: float = 0.0  # from the beginning of the step until the action was sent
    instruction: str | None = None  # where it is new in this step


class Controller(Protocol):
    """Gives one action per control step."""

    @property
    def needs_observation(self) -> bool:
        """Whether the next `control` call looks at its frame; if not, the frame need not be taken or rendered."""

    def reset(self, instruction: str) -> None:
        """Begin a new instruction."""

    def control(self, observation: Observation | None) -> ControlStep:
        """Return the next action; `observation` may be None when `needs_observation` is false."""

    def close(self) -> None:
        """End what runs beside the loop; a second call does nothing."""


class OpenLoop:
    """Plays the first `execute_steps` actions of each chunk, 1 to the chunk's size, before the next inference.

    Raises ConfigError for another number.
    """

    def __init__(self, policy: Policy, execute_steps: int) -> None:
        check_execute_steps(execute_steps, policy.chunk_size)
        warn_of_time_base(execute_steps, policy.frame_stride)
        self._policy = policy
        self._execute_steps = execute_steps
        self._pending: list[Float32] = []

    @property
    def conventions(self) -> Conventions:
        return conventions_of(self._policy)

    @property
    def needs_observation(self) -> bool:
        return not self._pending

    def reset(self, instruction: str) -> None:
        self._pending = []
        self._policy.reset(instruction)

    def control(self, observation: Observation | None) -> ControlStep:
        """Return the next action of the chunk, asking the policy for a new chunk when none is left.

        Raises ContractError where the policy refuses the frame.
        """
        inference = None
        if not self._pending:
            if observation is None:
                raise RuntimeError("the controller needs an observation now; ask needs_observation first")
            inference = self._policy.act(observation)
            self._pending = list(inference.actions[: self._execute_steps])
        age_steps = self._execute_steps - len(self._pending)
        return ControlStep(action=self._pending.pop(0), inference=inference, age_steps=age_steps)

    def close(self) -> None:
        """Do nothing: nothing runs beside the loop."""


class JumpStep(OpenLoop):
    """Open loop at the policy's own stride: the head sees one frame in `frame_stride`, as in training.

    Raises ConfigError for a policy with frame_stride 1, or with a chunk shorter than its stride.
    """

    def __init__(self, policy: Policy) -> None:
        check_jumps(policy.frame_stride)
        super().__init__(policy, policy.frame_stride)


class ClosedLoop(OpenLoop):
    """Asks the policy on every control step and plays the first action of its answer."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy, 1)


def check_execute_steps(execute_steps: int, chunk_size: int) -> None:
    """Raise ConfigError unless `1 <= execute_steps <= chunk_size`."""
    if not 1 <= execute_steps <= chunk_size:
        remedy = "Choose --execute-steps in that range, or a policy trained with a longer chunk."
        raise ConfigError("execute_steps", got=execute_steps, expected=f"1 to {chunk_size} (chunk_size)", remedy=remedy)


def check_jumps(frame_stride: int) -> None:
    """Raise ConfigError where jump-step is no mode of the policy."""
    if frame_stride == 1:
        expected, remedy = "one that was trained on every k-th frame", "Train with a frame stride, or pass --mode open-loop."
        raise ConfigError("mode jump-step", got="a policy with frame_stride 1", expected=expected, remedy=remedy)


def warn_of_time_base(execute_steps: int, frame_stride: int) -> None:
    """Log one warning when the frames come at another distance than in training."""
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
