"""Where a server listens and what it allows; every number that a client could drive up has a limit here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from rfedge.errors import ConfigError

__all__ = ["DEFAULT_PORT", "ServerSettings"]

DEFAULT_PORT: Final = 8000  # openpi's


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The fields are the flags of `rfedge serve`.

    Attributes:
        port: 0 lets the system choose.
        deadline_ms: a request that waits longer for its turn gets an error instead of an action for an old frame.
        max_connections: open websockets; further ones are refused with 503.
        max_message_bytes: of one message from a client.
        max_instruction_characters: of `prompt`.
        idle_timeout_s: a client that asks nothing for so long is disconnected; None keeps one that answers pings.
        handshake_timeout_s: a client gets so long from TCP connection to websocket.
        send_timeout_s: a client gets so long to read an answer.
        hung_after_s: /healthz says 503 when one policy call takes longer.
        resize: bring images of other sizes to the policy's by its own camera geometry; else they are refused.
        allowed_hosts: names besides loopback ones that a request may ask for, where a loopback address is listened on.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    deadline_ms: float = 1000.0
    max_connections: int = 128
    max_message_bytes: int = 1 << 21  # two pictures of 480 x 640
    max_instruction_characters: int = 512
    idle_timeout_s: float | None = None
    handshake_timeout_s: float = 5.0
    send_timeout_s: float = 5.0
    hung_after_s: float = 60.0
    resize: bool = False
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that allow nothing.

        Raises:
            ConfigError: the port is none, or a limit is not positive.
        """
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", got=self.port, expected="0 to 65535", remedy="Choose --port in that range.")
        for name in ("max_connections", "max_message_bytes", "max_instruction_characters"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    name, got=getattr(self, name), expected="1 or more", remedy=f"Raise --{name.replace('_', '-')}."
                )
        for name in ("deadline_ms", "idle_timeout_s", "handshake_timeout_s", "send_timeout_s", "hung_after_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(name, got=value, expected="a positive number", remedy=f"Raise --{name.replace('_', '-')}.")
