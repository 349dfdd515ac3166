"""State of a server's clients: one connection's messages, instruction and head state, and the policy's one thread.

Two connections share nothing but the policy, which keeps no state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from websockets.asyncio.server import ServerConnection

from rfedge.errors import ContractError
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.server.requests import Request


class Session:
    """State of one client's episode; one call at a time.

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
            remedy = "Send prompt with the first frame."
            raise ContractError("instruction", got="none", expected="plain words", remedy=remedy)
        if request.frame is None:
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


@dataclass(frozen=True, slots=True)
class Message:
    """One message and when it came, in seconds of `time.monotonic`."""

    data: str | bytes
    arrived_s: float


class MessageReader:
    """The receiving half of a connection; nobody else may receive from it.

    It reads ahead by one message: so a client that leaves is noticed while its request waits, and a second request's
    waiting time counts from its arrival. Further messages stay in the socket, which slows their sender down.
    """

    def __init__(self, connection: ServerConnection) -> None:
        self._connection: Final = connection
        self._reading: asyncio.Task[Message] | None = None

    def reading(self) -> asyncio.Task[Message]:
        """Return the task of the next message, for `asyncio.wait`; it fails when the connection is lost."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return self._reading

    def take(self) -> Message:
        """Return the message that `reading` has brought; ConnectionClosed where the connection was lost instead."""
        task, self._reading = self.reading(), None
        return task.result()

    async def close(self) -> None:
        """Stop reading and drop what was read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None

    async def _read(self) -> Message:
        data = await self._connection.recv()
        return Message(data=data, arrived_s=time.monotonic())


T = TypeVar("T")


class PolicyWorker:
    """Runs calls one after the other in a thread of its own."""

    def __init__(self) -> None:
        self._executor: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rfedge-policy")
        self._running_since_s: float | None = None

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call; `cancel()` of the future is true as long as the call has not begun."""
        return self._executor.submit(self._run, call)

    def busy_s(self) -> float:
        """Return how long the present call has been running; 0.0 between calls."""
        since_s = self._running_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def close(self) -> None:
        """Drop what waits; the call under way ends first."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(self, call: Callable[[], T]) -> T:
        self._running_since_s = time.monotonic()
        try:
            return call()
        finally:
            self._running_since_s = None
