"""Messages of one connection with the moment they came; reads one ahead while the policy works."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from websockets.asyncio.server import ServerConnection


@dataclass(frozen=True, slots=True)
class Message:
    """One message and when it came, in seconds of `time.monotonic`."""

    data: str | bytes
    arrived_s: float


class MessageReader:
    """The receiving half of a connection.

    It reads ahead by one message: so a client that leaves is noticed while its request waits, and a second request's
    waiting time counts from its arrival. Further messages stay in the socket, which slows their sender down.

    Args:
        connection: nobody else may receive from it.
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
        """Return the message that `reading` has brought.

        Raises:
            ConnectionClosed: the connection was lost instead.
        """
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
