"""Temporal ensembling: several chunks predict the same control step, and their weighted mean is played.

The weights are those of ACT (Zhao et al. 2023, "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware",
algorithm 2): exp(-decay * i), where i = 0 is the oldest prediction. A gripper that is half open is none, so it is voted
on with the same weights. ACT predicts positions; here an old chunk's step no longer begins where it was meant to, so a
decay below 0, which favours the newest chunk, may suit better: -1 weighs each older one by 1/e.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import numpy as np

from rfedge.arrays import Float32
from rfedge.errors import ConfigError
from rfedge.messages import GRIPPER_CLOSE, GRIPPER_OPEN, POSE_SIZE, Observation
from rfedge.robot.conventions import Conventions, conventions_of
from rfedge.runtimes.policy.step import Policy, PolicyStep

__all__ = ["ACT_DECAY", "TemporalEnsemble"]

ACT_DECAY = 0.01


class TemporalEnsemble:
    """A policy whose chunks are means over what the chunks before predicted for the same control steps.

    The loop that wraps it asks every `execute_steps` control steps. A `decay` of 0 weighs all predictions alike; above 0 the
    older ones weigh more, below 0 the newer ones.

    Raises:
        ConfigError: no two chunks overlap, or the decay is not finite.
    """

    def __init__(self, policy: Policy, execute_steps: int, *, decay: float = ACT_DECAY) -> None:
        if execute_steps >= policy.chunk_size:
            raise ConfigError(
                "ensemble",
                got=f"{execute_steps} steps of each chunk of {policy.chunk_size}",
                expected="fewer steps than a chunk has, so that chunks overlap",
                remedy="Lower --execute-steps, or leave out --ensemble.",
            )
        if not math.isfinite(decay):
            raise ConfigError("ensemble", got=decay, expected="a finite decay", remedy=f"ACT uses {ACT_DECAY}.")
        self._policy = policy
        self._execute_steps = execute_steps
        self._decay = decay
        # The chunk of i calls ago still says something about the present step while i * execute_steps < chunk_size.
        self._chunks: deque[Float32] = deque(maxlen=math.ceil(policy.chunk_size / execute_steps))

    @property
    def chunk_size(self) -> int:
        return self._policy.chunk_size

    @property
    def conventions(self) -> Conventions:
        return conventions_of(self._policy)

    @property
    def frame_stride(self) -> int:
        return self._policy.frame_stride

    def reset(self, instruction: str) -> None:
        self._policy.reset(instruction)
        self._chunks.clear()

    def act(self, observation: Observation) -> PolicyStep:
        """Ask the policy and return the mean of all that is known about the next `chunk_size` steps.

        Raises ContractError where the policy refuses the frame.
        """
        step = self._policy.act(observation)
        self._chunks.append(step.actions)
        return replace(step, actions=self._mean())

    def _mean(self) -> Float32:
        size = self.chunk_size
        weights = np.zeros((len(self._chunks), size))
        predictions = np.zeros((len(self._chunks), size, POSE_SIZE + 1))
        for index, chunk in enumerate(self._chunks):
            offset = (len(self._chunks) - 1 - index) * self._execute_steps
            predictions[index, : size - offset] = chunk[offset:]
            weights[index, : size - offset] = 1.0
        # Counted per step: its oldest prediction has i = 0, whichever chunk that is.
        rank = np.cumsum(weights, axis=0) - 1.0
        weights *= np.exp(-self._decay * rank)
        mean = np.einsum("is,isd->sd", weights, predictions) / weights.sum(axis=0)[:, None]
        newest = self._chunks[-1][:, POSE_SIZE]
        mean[:, POSE_SIZE] = np.where(
            mean[:, POSE_SIZE] == 0.0, newest, np.where(mean[:, POSE_SIZE] > 0.0, GRIPPER_OPEN, GRIPPER_CLOSE)
        )
        played: Float32 = mean.astype(np.float32)
        return played
