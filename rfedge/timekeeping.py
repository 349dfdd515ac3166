"""How the recurrent head keeps time, written once for every backend that can run an LSTM.

`carry`: one LSTM step a frame, the state carried for the whole subtask.
`window`: as the released RoboFlamingo weights were evaluated. The first `window` frames carry the state; from then on
every call replays the LSTM from zero over the last `window` features. (Replaying n features from zero is the same as
carrying through them, so both phases are "the last min(n, window) features from zero".)
Source: RoboFlamingo's step-by-step evaluation (ModelWrapper, history_len).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rfedge.config import PolicyConfig
from rfedge.messages import FloatArray, HeadState

__all__ = ["HeadCall", "HeadOutput", "advance", "initial_state"]

HeadOutput = tuple[FloatArray, FloatArray, FloatArray, FloatArray]
# (features (1, S, width), h, c) -> (pose (1, k, 6), gripper (1, k), h_out, c_out), all float32
HeadCall = Callable[[FloatArray, FloatArray, FloatArray], HeadOutput]


def initial_state(config: PolicyConfig) -> HeadState:
    """Return the state at the start of an instruction: zeros, no history."""
    shape = (config.head.layers, 1, config.head.hidden_size)
    return HeadState(
        h=np.zeros(shape, np.float32),
        c=np.zeros(shape, np.float32),
        history=np.zeros((0, config.feature_size), np.float32),
        num_steps=0,
    )


def advance(
    config: PolicyConfig, call: HeadCall, feature: FloatArray, state: HeadState
) -> tuple[FloatArray, FloatArray, HeadState]:
    """Feed one feature to the head.

    Args:
        config: names the time-keeping and the window.
        call: runs the head graph, whatever the backend.
        feature: float32 (1, width) of the newest frame.
        state: what the last call returned; it is not changed.

    Returns:
        pose (k, 6), gripper probability (k,), and the next state.
    """
    if config.time_keeping == "carry":
        pose, gripper, h, c = call(feature[:, None], state.h, state.c)
        return pose[0], gripper[0], HeadState(h=h, c=c, history=state.history, num_steps=state.num_steps + 1)
    history: npt.NDArray[Any] = np.concatenate([state.history, feature])[-config.window :]
    if state.num_steps < config.window:
        pose, gripper, h, c = call(feature[:, None], state.h, state.c)
    else:
        zeros = np.zeros_like(state.h)
        pose, gripper, h, c = call(history[None], zeros, zeros)
    return pose[0], gripper[0], HeadState(h=h, c=c, history=history, num_steps=state.num_steps + 1)
