"""Where a server listens and what it allows; every number that a client could drive up has a limit here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final

from rfedge.errors import ConfigError
from rfedge.records.plan import Option

DEFAULT_PORT: Final = 8000  # openpi's


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Options of `rfedge serve`."""

    host: Annotated[
        str, Option("Address to listen on; beyond this machine only with a token.", panel="Address and access")
    ] = "127.0.0.1"
    port: Annotated[int, Option("TCP port; 0 lets the system choose.")] = DEFAULT_PORT
    allowed_hosts: Annotated[
        tuple[str, ...],
        Option(
            "Name by which clients may ask for a server that listens on loopback, such as a proxy's; repeatable.",
            flag="--allow-host",
            parse=str.lower,
        ),
    ] = ()
    deadline_ms: Annotated[
        float, Option("A request that waits longer gets an error, not an old action.", panel="Limits")
    ] = 1000.0
    max_connections: Annotated[int, Option("Websockets open at a time.")] = 128
    max_message_bytes: Annotated[int, Option("Size of one message from a client.")] = 1 << 21  # two pictures of 480 x 640
    max_instruction_characters: Annotated[int, Option("Length of an instruction.")] = 512
    idle_timeout_s: Annotated[
        float | None, Option("Disconnect a client that asks nothing for so long; by default none that lives.")
    ] = None
    handshake_timeout_s: float = 5.0  # from TCP connection to websocket
    send_timeout_s: float = 5.0  # for a client to read an answer
    hung_after_s: float = 60.0  # /healthz says 503 when one policy call takes longer
    resize: Annotated[bool, Option("Bring images of other sizes to the policy's, by its own geometry.", panel="Policy")] = (
        False
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", got=self.port, expected="0 to 65535", remedy="Choose --port in that range.")
        for name in ("max_connections", "max_message_bytes", "max_instruction_characters"):
            if getattr(self, name) < 1:
                remedy = f"Raise --{name.replace('_', '-')}."
                raise ConfigError(name, got=getattr(self, name), expected="1 or more", remedy=remedy)
        for name in ("deadline_ms", "idle_timeout_s", "handshake_timeout_s", "send_timeout_s", "hung_after_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(name, got=value, expected="a positive number", remedy=f"Raise --{name.replace('_', '-')}.")
