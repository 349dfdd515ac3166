"""The recurrent head with its memory in the open: state in, state out, and two ways to keep time.

`carry` steps the LSTM once per call. `window` does the same until `window` features were seen and from then on
replays the LSTM from zero over the last `window` features on every call: the released RoboFlamingo weights were
evaluated like that and lose success when the state is carried further than the window they were trained on.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.config import PolicyConfig
from rfedge.messages import POSE_SIZE, HeadState
from rfedge.runtimes.base import GraphRunner

__all__ = ["HeadRuntime"]

Float32Array = npt.NDArray[np.float32]


class HeadRuntime:
    """Steps the head graph and keeps its time.

    Args:
        runner: an active runner of the head graph.
        config: the policy; its `time_keeping`, `window` and head sizes are used.
    """

    def __init__(self, runner: GraphRunner, config: PolicyConfig) -> None:
        self._runner = runner
        self._config = config
        shape = (config.head.layers, 1, config.head.hidden_size)
        self._zero: Final[npt.NDArray[Any]] = np.zeros(shape, dtype=np.float32)
        self._zero.flags.writeable = False

    def initial_state(self) -> HeadState:
        """Return the state of a policy that has seen nothing."""
        return HeadState(h=self._zero, c=self._zero, history=np.zeros((0, self._config.feature_size), dtype=np.float32))

    def step(self, feature: Float32Array, state: HeadState) -> tuple[Float32Array, Float32Array, HeadState]:
        """Predict the next actions; `state` is left as it is.

        Args:
            feature: float32 (1, width) of the present frame.
            state: what the previous step returned, or `initial_state()`.

        Returns:
            pose float32 (chunk, 6), gripper opening probability float32 (chunk,), and the new state: `h` and `c` are
            what this LSTM run returned, `history` holds the features of the window, oldest first.

        Raises:
            ContractError: a tensor does not fit the head's contract, or the graph returned NaN or Inf.
        """
        if self._config.time_keeping == "carry":
            history, replays = state.history, False
        else:
            history = np.concatenate([state.history, feature])[-self._config.window :]
            # Until the window is full, one step with the carried state equals the replay and costs a fraction of it.
            replays = len(state.history) >= self._config.window
        outputs = self._runner.infer(
            {"features": history[None], "h": self._zero, "c": self._zero}
            if replays
            else {"features": feature[None], "h": state.h, "c": state.c}
        )
        new_state = HeadState(h=outputs["h_out"], c=outputs["c_out"], history=history, num_steps=state.num_steps + 1)
        return outputs["pose"].reshape(-1, POSE_SIZE), outputs["gripper"].reshape(-1), new_state
