"""From camera frames and an instruction to actions: the whole policy, on whichever backend its parts come from.

`infer` is the pure core, a function of observation, instruction and state. `act` only remembers the instruction and
the state for a single caller, such as a control loop; a server calls `infer` with one state per client.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from rfedge.arrays import Array, Float32
from rfedge.config import PolicyConfig
from rfedge.errors import ContractError
from rfedge.messages import ACTION_SIZE, GRIPPER_CLOSE, GRIPPER_OPEN, POSE_SIZE, Observation, PolicyState
from rfedge.recurrence import advance, history_inputs, initial_state, remember_frame, remembered_calls
from rfedge.robot.conventions import Conventions
from rfedge.runtimes.backends.base import PolicyParts, RuntimeSettings
from rfedge.runtimes.backends.registry import DEFAULT_BACKEND, open_parts
from rfedge.runtimes.policy.step import STAGES, Policy, PolicyStep

__all__ = ["STAGES", "EdgePolicy", "Inference", "Policy", "PolicyStep"]

OPEN_PROBABILITY: Final = 0.5
_NS_PER_MS: Final = 1e6


@dataclass(frozen=True, slots=True, eq=False)
class Inference(PolicyStep):
    """A `PolicyStep` whose head state is known: it belongs to the next call."""

    state: PolicyState


class EdgePolicy(AbstractContextManager["EdgePolicy"]):
    """A loaded policy; use it as a context manager or call `close`.

    One thread at a time: the runners reuse their buffers.

    Raises:
        ArtifactError: a graph cannot be loaded.
        BackendUnavailableError: a requested provider is not on this machine.
    """

    def __init__(self, parts: PolicyParts) -> None:
        self.parts: Final = parts
        # The head first: what loading needs for a moment (M-3B: 80 MB) is given back before the backbone's weights come.
        parts.head.activate()
        parts.backbone.activate()
        self._instruction: str | None = None
        self._state = initial_state(parts.config)

    @classmethod
    def load(
        cls, path: Path | str, *, backend: str = DEFAULT_BACKEND, settings: RuntimeSettings | None = None
    ) -> EdgePolicy:
        """Load a bundle (or, with backend "torch", a checkpoint).

        Raises:
            ArtifactError: the files are missing, incomplete or altered; the text names the file.
            ConfigError: no backend has this name.
            BackendUnavailableError: the backend's library or provider is not on this machine.
        """
        return cls(open_parts(backend, Path(path), settings or RuntimeSettings()))

    @property
    def config(self) -> PolicyConfig:
        return self.parts.config

    @property
    def conventions(self) -> Conventions:
        return self.parts.config.conventions

    @property
    def chunk_size(self) -> int:
        return self.parts.config.chunk_size

    @property
    def frame_stride(self) -> int:
        return self.parts.config.frame_stride

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free both graphs; a second call does nothing."""
        self.parts.head.deactivate()
        self.parts.backbone.deactivate()

    def cancel(self) -> None:
        """End the call under way in another thread, where the backend can; it raises PolicyUnavailableError there."""
        self.parts.backbone.cancel()
        self.parts.head.cancel()

    @property
    def remembers_calls(self) -> int | None:
        """How many calls before the present one an action can depend on; None for all of them since the reset."""
        return remembered_calls(self.config)

    def initial_state(self) -> PolicyState:
        """Return the state of a policy that has seen nothing."""
        return initial_state(self.config)

    def infer(self, observation: Observation, instruction: str, state: PolicyState) -> Inference:
        """Predict actions; the result depends on the arguments alone and changes none of them.

        Args:
            observation: its `task` is not used, its `state` by a policy with proprioception alone.
            instruction: plain words, embedded once and then remembered.
            state: `initial_state()` or the state of the previous inference.

        Raises:
            ContractError: the observation or instruction does not fit, or a graph returned NaN or Inf.
        """
        started_ns = time.perf_counter_ns()
        observation.check()
        text = self.parts.encoder(instruction)
        inputs: dict[str, Array] = {
            "image_static": observation.static[None],
            "image_gripper": observation.gripper[None],
            "text_embedding": text.embedding,
            "text_mask": text.mask,
        }
        if self.config.proprioception:
            inputs["robot_state"] = _robot_state(observation)
        preprocessed_ns = time.perf_counter_ns()
        outputs = self.parts.backbone.infer({**inputs, **history_inputs(self.config, state)})
        feature, seen = remember_frame(self.config, outputs, state)
        seen_ns = time.perf_counter_ns()
        pose, gripper, new_state = advance(self.config, self.parts.head.infer, feature, seen)
        decided_ns = time.perf_counter_ns()
        actions = np.empty((len(pose), ACTION_SIZE), dtype=np.float32)
        np.clip(pose, -1.0, 1.0, out=actions[:, :POSE_SIZE])
        actions[:, POSE_SIZE] = np.where(gripper > OPEN_PROBABILITY, GRIPPER_OPEN, GRIPPER_CLOSE)
        ended_ns = time.perf_counter_ns()
        timings_ms = {
            "preprocess": (preprocessed_ns - started_ns) / _NS_PER_MS,
            "backbone": (seen_ns - preprocessed_ns) / _NS_PER_MS,
            "head": (decided_ns - seen_ns) / _NS_PER_MS,
            "postprocess": (ended_ns - decided_ns) / _NS_PER_MS,
            "total": (ended_ns - started_ns) / _NS_PER_MS,
        }
        return Inference(actions=actions, state=new_state, timings_ms=timings_ms)

    def reset(self, instruction: str) -> None:
        """Start a new instruction: the only thing that clears the state.

        Raises:
            ContractError: the instruction is empty or too long; the policy then stays as it was.
        """
        self.parts.encoder(instruction)  # embedded here, so that the first step is no slower than the others
        self._instruction = instruction
        self._state = self.initial_state()

    def act(self, observation: Observation) -> PolicyStep:
        """Predict the next actions for the instruction of the last `reset`.

        Raises:
            ContractError: as `infer`, or `reset` was never called; the state stays as it was.
        """
        if self._instruction is None:
            expected = "reset(instruction) first"
            raise ContractError("policy", got="act() without an instruction", expected=expected, remedy="Call it once.")
        inference = self.infer(observation, self._instruction, self._state)
        self._state = inference.state
        return inference


def _robot_state(observation: Observation) -> Float32:
    if observation.state is None:
        raise ContractError(
            "observation.state",
            got="None",
            expected="15 numbers: this policy was trained with proprioception",
            remedy="Send the robot's state, see rfedge.messages.Observation.",
        )
    return observation.state.astype(np.float32)[None]
