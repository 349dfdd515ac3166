"""How a policy keeps time, written once for every backend that can run its two graphs.

The head's time:
`carry`: one LSTM step a frame, the state carried for the whole subtask.
`window`: as the released RoboFlamingo weights were evaluated. The first `window` frames carry the state; from then on
every action comes from an LSTM that started at zero and has seen the last `window` features alone. Replaying them in every
call would read the recurrent weights `window` times. Instead `window` LSTMs run side by side, the rows of one batch, each
begun one frame after the one before it: every frame is one step of all rows, the row that has seen the last `window`
features acts, and starts again at zero with the next frame. The same numbers, and weights are read once (ADR 0013).
A GPT head has no state and always reads the last min(n, window) features. An MLP head has no time at all.
The backbone's time: with `media_frames` M above 1 the text also reads the latents of the last M - 1 frames.
Source: RoboFlamingo's step-by-step evaluation (ModelWrapper, history_len) and section 5.4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from rfedge.arrays import Array
from rfedge.config import LSTMHeadConfig, PolicyConfig
from rfedge.messages import FloatArray, PolicyState

__all__ = [
    "Arrays",
    "BackboneCall",
    "HeadCall",
    "HeadOutput",
    "acting_row",
    "advance",
    "history_inputs",
    "initial_state",
    "observe",
    "remember_frame",
    "remembered_calls",
]

Arrays = Mapping[str, Array]
# graph inputs by name -> graph outputs by name
BackboneCall = Callable[[Arrays], Arrays]
HeadCall = Callable[[Arrays], Arrays]
HeadOutput = tuple[FloatArray, FloatArray, PolicyState]


def initial_state(config: PolicyConfig) -> PolicyState:
    """Return the state at the start of an instruction: zeros, no history."""
    head = config.head
    shape = (head.layers, config.lstm_rows, head.hidden_size) if isinstance(head, LSTMHeadConfig) else (0, 1, 0)
    return PolicyState(
        h=np.zeros(shape, np.float32),
        c=np.zeros(shape, np.float32),
        history=np.zeros((0, config.feature_size), np.float32),
        media=np.zeros((0, config.latents_per_frame, config.vision.width), np.float32),
        num_steps=0,
    )


def remembered_calls(config: PolicyConfig) -> int | None:
    """Return how many calls before the present one an action can depend on; None for all of them since the reset."""
    if config.head.kind == "lstm" and config.time_keeping == "carry":
        return None
    return (0 if config.head.kind == "mlp" else config.window - 1) + config.media_frames - 1


def acting_row(state: PolicyState) -> int:
    """Return which row of `h` and `c` belongs to the LSTM that acted last, and has seen most frames."""
    rows = state.h.shape[1]
    return 0 if state.num_steps <= rows else state.num_steps % rows


def history_inputs(config: PolicyConfig, state: PolicyState) -> dict[str, Array]:
    """Return the backbone's inputs that hold older frames; none where the text reads the present frame alone."""
    past = config.media_frames - 1
    if not past:
        return {}
    missing = past - len(state.media)
    padded = np.pad(state.media, ((missing, 0), (0, 0), (0, 0)))
    return {"media_history": padded[None], "media_mask": (np.arange(past) >= missing)[None]}


def observe(config: PolicyConfig, call: BackboneCall, inputs: Arrays, state: PolicyState) -> tuple[FloatArray, PolicyState]:
    """Feed one frame to the backbone `call`; return feature (1, width) and the state, in which only `media` is new.

    `inputs` are the graph's, without those that hold older frames.
    """
    return remember_frame(config, call({**inputs, **history_inputs(config, state)}), state)


def remember_frame(config: PolicyConfig, outputs: Arrays, state: PolicyState) -> tuple[FloatArray, PolicyState]:
    """Return feature and state as `observe` does, of what the backbone returned."""
    if config.media_frames == 1:
        return outputs["feature"], state
    media = np.concatenate([state.media, outputs["media"]])[1 - config.media_frames :]
    return outputs["feature"], replace(state, media=media)


def advance(config: PolicyConfig, call: HeadCall, feature: FloatArray, state: PolicyState) -> HeadOutput:
    """Feed the feature float32 (1, width) of the newest frame to the head `call`.

    Returns pose (k, 6), gripper probability (k,), and the next state.
    """
    num_steps = state.num_steps + 1
    if config.head.kind == "mlp":
        outputs = call({"features": feature[:, None]})
        return outputs["pose"][0], outputs["gripper"][0], replace(state, num_steps=num_steps)
    if config.head.kind == "gpt":
        history = np.concatenate([state.history, feature])[-config.window :]
        outputs = call({"features": history[None]})
        return outputs["pose"][0], outputs["gripper"][0], replace(state, history=history, num_steps=num_steps)
    h, c = (
        _with_fresh_row(rows, state.num_steps) if config.time_keeping == "window" else rows for rows in (state.h, state.c)
    )
    outputs = call({"features": feature[:, None], "h": h, "c": c})
    new_state = replace(state, h=outputs["h_out"], c=outputs["c_out"], num_steps=num_steps)
    row = acting_row(new_state)
    return outputs["pose"][row], outputs["gripper"][row], new_state


def _with_fresh_row(rows: FloatArray, num_steps: int) -> FloatArray:
    """Return the rows, of which the one that begins at this frame is zero."""
    fresh = rows.copy()
    fresh[:, num_steps % rows.shape[1]] = 0
    return fresh
