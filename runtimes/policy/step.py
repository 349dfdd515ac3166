"""Interface of a policy to a loop, and its answer, whatever computes it: a bundle here or a server elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from rfedge.arrays import Float32
from rfedge.messages import Observation, PolicyState

__all__ = ["STAGES", "Policy", "PolicyStep", "Trained"]

# The order of a call; `total` is measured on its own and includes what lies between the stages.
STAGES: Final = ("preprocess", "backbone", "head", "postprocess", "total")


@dataclass(frozen=True, slots=True, eq=False)
class PolicyStep:
    """Result of one policy call."""

    actions: Float32  # (chunk, 7), pose in [-1, 1], gripper exactly -1 or 1
    timings_ms: Mapping[str, float]  # by `STAGES`; empty for a policy that does not time itself
    state: PolicyState | None = None  # after the call; None for a policy that does not tell


class Trained(Protocol):
    """Loop settings that a policy's training decides; a policy and the record of one both say it."""

    @property
    def chunk_size(self) -> int:
        """Actions per call."""

    @property
    def frame_stride(self) -> int:
        """Control steps between the frames the policy was trained on."""


class Policy(Trained, Protocol):
    """Policy as a controller sees it; anything with these four members can take the place of `EdgePolicy`."""

    def reset(self, instruction: str) -> None:
        """Forget everything and follow `instruction` from now on."""

    def act(self, observation: Observation) -> PolicyStep:
        """Predict the next `chunk_size` actions from the present frame.

        Raises:
            PolicyUnavailableError: there is no answer in time; the next call may have one.
        """
