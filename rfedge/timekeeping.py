"""How a policy keeps time, written once for every backend that can run its two graphs.

The head's time:
`carry`: one LSTM step a frame, the state carried for the whole subtask.
`window`: as the released RoboFlamingo weights were evaluated. The first `window` frames carry the state; from then on
every call replays the LSTM from zero over the last `window` features. (Replaying n features from zero is the same as
carrying through them, so both phases are "the last min(n, window) features from zero".) A GPT head has no state and
always reads the last min(n, window) features. An MLP head has no time at all.
The backbone's time: with `media_frames` M above 1 the text also reads the latents of the last M - 1 frames.
Source: RoboFlamingo's step-by-step evaluation (ModelWrapper, history_len) and section 5.4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rfedge.config import LSTMHeadConfig, PolicyConfig
from rfedge.messages import FloatArray, PolicyState

__all__ = ["Arrays", "BackboneCall", "HeadCall", "HeadOutput", "advance", "history_inputs", "initial_state", "observe"]

Arrays = Mapping[str, npt.NDArray[Any]]
# graph inputs by name -> graph outputs by name
BackboneCall = Callable[[Arrays], Arrays]
HeadCall = Callable[[Arrays], Arrays]
HeadOutput = tuple[FloatArray, FloatArray, PolicyState]


def initial_state(config: PolicyConfig) -> PolicyState:
    """Return the state at the start of an instruction: zeros, no history."""
    shape = (config.head.layers, 1, config.head.hidden_size) if isinstance(config.head, LSTMHeadConfig) else (0, 1, 0)
    return PolicyState(
        h=np.zeros(shape, np.float32),
        c=np.zeros(shape, np.float32),
        history=np.zeros((0, config.feature_size), np.float32),
        media=np.zeros((0, config.latents_per_frame, config.vision.width), np.float32),
        num_steps=0,
    )


def history_inputs(config: PolicyConfig, state: PolicyState) -> dict[str, npt.NDArray[Any]]:
    """Return the backbone's inputs that hold older frames; none where the text reads the present frame alone."""
    past = config.media_frames - 1
    if not past:
        return {}
    missing = past - len(state.media)
    padded = np.pad(state.media, ((missing, 0), (0, 0), (0, 0)))
    return {"media_history": padded[None], "media_mask": (np.arange(past) >= missing)[None]}


def observe(config: PolicyConfig, call: BackboneCall, inputs: Arrays, state: PolicyState) -> tuple[FloatArray, PolicyState]:
    """Feed one frame to the backbone.

    Args:
        config: names `media_frames`.
        call: runs the backbone graph, whatever the backend.
        inputs: the graph's inputs, without those that hold older frames.
        state: what the last call returned; it is not changed.

    Returns:
        feature (1, width) and the state, in which only `media` is new.
    """
    outputs = call({**inputs, **history_inputs(config, state)})
    if config.media_frames == 1:
        return outputs["feature"], state
    media = np.concatenate([state.media, outputs["media"]])[1 - config.media_frames :]
    return outputs["feature"], replace(state, media=media)


def advance(config: PolicyConfig, call: HeadCall, feature: FloatArray, state: PolicyState) -> HeadOutput:
    """Feed one feature to the head.

    Args:
        config: names the head, the time-keeping and the window.
        call: runs the head graph, whatever the backend.
        feature: float32 (1, width) of the newest frame.
        state: what `observe` returned; it is not changed.

    Returns:
        pose (k, 6), gripper probability (k,), and the next state.
    """
    num_steps = state.num_steps + 1
    if config.head.kind == "mlp":
        outputs = call({"features": feature[:, None]})
        return outputs["pose"][0], outputs["gripper"][0], replace(state, num_steps=num_steps)
    history: npt.NDArray[Any] = state.history
    if config.time_keeping == "window":
        history = np.concatenate([state.history, feature])[-config.window :]
    if config.head.kind == "gpt":
        outputs = call({"features": history[None]})
        return outputs["pose"][0], outputs["gripper"][0], replace(state, history=history, num_steps=num_steps)
    if config.time_keeping == "carry" or state.num_steps < config.window:
        outputs = call({"features": feature[:, None], "h": state.h, "c": state.c})
    else:
        zeros = np.zeros_like(state.h)
        outputs = call({"features": history[None], "h": zeros, "c": zeros})
    new_state = replace(state, h=outputs["h_out"], c=outputs["c_out"], history=history, num_steps=num_steps)
    return outputs["pose"][0], outputs["gripper"][0], new_state
