"""One connection's instruction and head state. Two connections share nothing but the policy, which keeps no state."""

from __future__ import annotations

from typing import Any, Final

from rfedge.errors import ContractError
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.server.requests import Request


class Session:
    """What one client's episode has come to; one call at a time.

    The state begins anew with a reset, with another instruction, and with a connection: nothing is kept for a client that
    comes back, because frames are missing from what it remembers.
    """

    def __init__(self, policy: EdgePolicy) -> None:
        self._policy: Final = policy
        self._instruction = ""
        self._state = policy.initial_state()

    def answer(self, request: Request) -> dict[str, Any]:
        """Run the request and return the fields of its answer; the session changes only if it succeeds.

        Returns:
            For a frame `actions`, float32 (chunk, 7), `remembered_calls`, how many earlier calls they depend on, and
            `server_timing`, milliseconds: `infer_ms` is the whole call, the other keys are its stages. For a reset alone
            `reset`: true.

        Raises:
            ContractError: the request does not fit the policy, or there is no instruction.
        """
        instruction = request.instruction or self._instruction
        if not instruction.strip():
            raise ContractError(
                "instruction", got="none", expected="plain words", remedy="Send prompt with the first frame."
            )
        if request.resets and not request.fields:
            self._policy.parts.encoder(instruction)  # embedded here, so that the first frame is no slower than the others
            self._instruction, self._state = instruction, self._policy.initial_state()
            return {"reset": True, "server_timing": {}}
        goes_on = instruction == self._instruction and not request.resets
        state = self._state if goes_on else self._policy.initial_state()
        inference = self._policy.infer(request.observation(), instruction, state)
        self._instruction, self._state = instruction, inference.state
        timing_ms = {f"{stage}_ms": duration_ms for stage, duration_ms in inference.timings_ms.items() if stage != "total"}
        longest = self._policy.remembers_calls
        return {
            "actions": inference.actions,
            "remembered_calls": state.num_steps if longest is None else min(state.num_steps, longest),
            "server_timing": {"infer_ms": inference.timings_ms["total"]} | timing_ms,
        }
