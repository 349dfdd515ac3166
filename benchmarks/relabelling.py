"""Lets a policy drive while an expert labels what it should have done: DAgger's collection, from a bundle.

The policy then learns from the states that it brings about itself, its own mistakes among them. Recording is
`rfedge.envs.demonstrations.record_episode` with the driver from here.

Source: Ross, Gordon, Bagnell: A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning,
AISTATS 2011.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from rfedge.bundle import MANIFEST_NAME, hash_file
from rfedge.messages import Observation
from rfedge.runtimes.base import RuntimeSettings
from rfedge.runtimes.controllers import SYNCHRONOUS_MODES, make_controller, played_steps
from rfedge.runtimes.modes import Controller
from rfedge.runtimes.policy import EdgePolicy
from rfedge.runtimes.safety import guard_action

__all__ = ["PolicyChoice", "PolicyDriver"]


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """Which policy drives, and in which loop.

    Attributes:
        bundle: folder written by `rfedge export`.
        mode: see `rfedge.runtimes.controllers.SYNCHRONOUS_MODES`.
        execute_steps: actions played per inference; None is 1 in closed loop and the whole chunk in open loop.
    """

    bundle: Path
    mode: str = "closed-loop"
    execute_steps: int | None = None


class PolicyDriver:
    """A policy in its control loop, as what drives a recording; use it as a context manager or call `close`.

    One thread computes, so that a recording does not depend on how many cores its machine has.

    Raises:
        ArtifactError: the bundle cannot be loaded.
        ConfigError: the mode is unknown, or `execute_steps` does not fit the mode or the policy.
    """

    def __init__(self, choice: PolicyChoice) -> None:
        """Load the bundle."""
        self._choice = choice
        self._policy = EdgePolicy.load(choice.bundle, settings=RuntimeSettings(threads=1))
        try:
            self._controller: Controller = make_controller(
                self._policy, choice.mode, choice.execute_steps, modes=SYNCHRONOUS_MODES
            )
        except BaseException:
            self._policy.close()
            raise

    def describe(self) -> dict[str, Any]:
        """Return what identifies the driver, as JSON values, to be kept beside what it recorded."""
        return {
            "name": self._policy.config.name,
            "precision": self._policy.parts.precision,
            "manifest_sha256": hash_file(self._choice.bundle / MANIFEST_NAME),
            "mode": self._choice.mode,
            "execute_steps": played_steps(self._policy, self._choice.mode, self._choice.execute_steps),
        }

    def reset(self, instruction: str) -> None:
        """Forget everything and follow `instruction` from now on."""
        self._controller.reset(instruction)

    @property
    def needs_observation(self) -> bool:
        """Whether the next action is inferred, not the next one of a chunk."""
        return self._controller.needs_observation

    def act(self, observation: Observation | None) -> npt.NDArray[np.float64]:
        """Return the policy's action (7,), made safe to send.

        Raises:
            ContractError: the policy refuses the frame or returned NaN or Inf.
        """
        control = self._controller.control(observation if self.needs_observation else None)
        return guard_action(control.action).astype(np.float64)

    def __enter__(self) -> PolicyDriver:
        """Return the driver, which is loaded already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Free the policy; a second call does nothing."""
        self._policy.close()
