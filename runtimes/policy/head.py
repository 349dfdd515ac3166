"""The head with its memory in the open: state in, state out. The rule of time is `rfedge.recurrence`'s."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from rfedge.config import PolicyConfig
from rfedge.messages import PolicyState
from rfedge.recurrence import advance, initial_state
from rfedge.runtimes.backends.base import GraphRunner

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

    def initial_state(self) -> PolicyState:
        """Return the state of a policy that has seen nothing."""
        return initial_state(self._config)

    def step(self, feature: Float32Array, state: PolicyState) -> tuple[Float32Array, Float32Array, PolicyState]:
        """Predict the next actions; `state` is left as it is.

        Args:
            feature: float32 (1, width) of the present frame.
            state: what the previous step returned, or `initial_state()`.

        Returns:
            pose float32 (chunk, 6), gripper opening probability float32 (chunk,), and the new state.

        Raises:
            ContractError: a tensor does not fit the head's contract, or the graph returned NaN or Inf.
        """
        pose, gripper, new_state = advance(self._config, self._runner.infer, feature, state)
        return cast("Float32Array", pose), cast("Float32Array", gripper), new_state
