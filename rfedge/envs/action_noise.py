"""Noise on executed actions, so that demonstrations also show how to come back to the task from beside its path.

Noise comes in bursts of one direction: white noise of the same size averages out over a few steps and hardly leaves the
path. Source: Laskey et al., DART: Noise Injection for Robust Imitation Learning, CoRL 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from rfedge.envs.interface import Float64Array
from rfedge.errors import ConfigError
from rfedge.messages import POSE_SIZE

BURST_STEPS: Final = (3, 8)  # shortest and longest burst, in control steps; every length between is as likely
_MEAN_BURST_STEPS: Final = 0.5 * sum(BURST_STEPS)


@dataclass(frozen=True, slots=True)
class ActionNoise:
    """How much noise there is."""

    scale: float  # largest pose component of a burst, as a part of the largest action (0.02 m and 0.05 rad a step)
    share: float = 0.3  # part of the steps that are disturbed, on average

    def check(self) -> None:
        """Raise ConfigError unless 0 < scale <= 1 and 0 < share < 1."""
        if not 0.0 < self.scale <= 1.0:
            raise ConfigError("action noise", got=self.scale, expected="0 < noise <= 1", remedy="Try --action-noise 0.5.")
        if not 0.0 < self.share < 1.0:
            raise ConfigError("noise share", got=self.share, expected="0 < share < 1", remedy="Try --noise-share 0.3.")


class NoiseBursts:
    """The noise of one rollout."""

    def __init__(self, noise: ActionNoise, rng: np.random.Generator) -> None:
        noise.check()
        self._noise = noise
        self._rng = rng
        self._push: Float64Array = np.zeros(POSE_SIZE)
        self._steps_left = 0
        # A burst and the pause before it make one cycle; the pause is as long as the share asks for, on average.
        pause_steps = _MEAN_BURST_STEPS * (1.0 - noise.share) / noise.share
        self._start_probability = 1.0 / (1.0 + pause_steps)

    def disturb(self, action: Float64Array) -> Float64Array:
        """Return what is sent instead of `action` (7,) in the next control step: pose within [-1, 1], gripper as it was."""
        if not self._steps_left and self._rng.random() < self._start_probability:
            self._steps_left = int(self._rng.integers(BURST_STEPS[0], BURST_STEPS[1] + 1))
            direction = self._rng.normal(size=POSE_SIZE)
            self._push = direction * (self._noise.scale / float(np.abs(direction).max()))
        if not self._steps_left:
            return action
        self._steps_left -= 1
        sent = action.copy()
        sent[:POSE_SIZE] = np.clip(sent[:POSE_SIZE] + self._push, -1.0, 1.0)
        return sent
