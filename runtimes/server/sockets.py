"""Sockets before and while they are clients: how many may wait, which goes first, and what one may make the server hold.

A socket waits from the moment it is accepted, its TLS handshake included, until its request is let in as a websocket.
Waiting costs nothing but a place, so places are what silence cannot keep: when they are full the socket that has waited
longest is closed, not the newest, and a client that speaks at once gets in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from websockets.asyncio.server import ServerConnection
from websockets.frames import DATA_OPCODES, Frame

from rfedge.runtimes.server.metrics import ServerMetrics

logger = logging.getLogger(__name__)
# At 230 new sockets a second from one address, a client of the same address has half a second to say its request.
MAX_WAITING: Final = 256
MAX_WAITING_PER_ADDRESS: Final = 128
# Answers have some kilobytes; pongs and refusals that nobody reads would pile up beyond any bound.
MAX_UNREAD_BYTES: Final = 1 << 16
# Of one message; empty ones would never reach the bound of its size.
MAX_FRAGMENTS: Final = 256
_BACKLOG: Final = 128
_LOG_EVERY_S: Final = 60.0
# (host, port) of IPv4, (host, port, flow, scope) of IPv6
Address = tuple[Any, ...]


class SocketGate:
    """Counts sockets by what they are, and closes those that wait when there are too many."""

    def __init__(self, metrics: ServerMetrics, now_s: Callable[[], float] = time.monotonic) -> None:
        self._metrics: Final = metrics
        self._now_s: Final = now_s
        self._waiting: dict[Address, socket.socket] = {}  # longest first
        self._clients: set[Address] = set()
        self._num_closed = 0
        self._logged_s = -_LOG_EVERY_S

    @property
    def num_clients(self) -> int:
        return len(self._clients)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, accepted: socket.socket, address: Address) -> None:
        """Let a new socket wait, in the place of one that waits longer if there is none left."""
        self._waiting[address] = accepted
        same = [other for other in self._waiting if other[0] == address[0]]
        if len(same) > MAX_WAITING_PER_ADDRESS:
            self._close(same[0], "address")
        elif len(self._waiting) > MAX_WAITING:
            self._forget_ended()
            if len(self._waiting) > MAX_WAITING:
                self._close(next(iter(self._waiting)), "waiting")

    def enter(self, address: Address) -> None:
        """Count a socket as a client from now on."""
        self._waiting.pop(address, None)
        self._clients.add(address)

    def leave(self, address: Address) -> None:
        """Forget a socket that is closed."""
        self._waiting.pop(address, None)
        self._clients.discard(address)

    def _forget_ended(self) -> None:
        """Forget those whose TLS handshake failed: nobody else learns of them."""
        for address in [address for address, accepted in self._waiting.items() if accepted.fileno() == -1]:
            del self._waiting[address]

    def _close(self, address: Address, reason: str) -> None:
        with contextlib.suppress(OSError):
            self._waiting.pop(address).shutdown(socket.SHUT_RDWR)  # its transport finds the end and closes it
        self._metrics.closed_sockets.labels(reason).inc()
        self._num_closed += 1
        now_s = self._now_s()
        if now_s - self._logged_s >= _LOG_EVERY_S:
            logger.warning(
                "%d sockets without a request were closed for newer ones, the last from %s", self._num_closed, address[0]
            )
            self._num_closed, self._logged_s = 0, now_s


class _Listener(socket.socket):
    """Reports what it accepts: with TLS, asyncio shows a socket to its protocol only after the handshake."""

    gate: SocketGate

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        self.gate.add(accepted, address)
        return accepted, address


def open_listeners(host: str, port: int, gate: SocketGate) -> list[socket.socket]:
    """Return one listening socket for every address of `host`, all on one port; OSError where there is none."""
    opened: list[socket.socket] = []
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            listener = _Listener(family, kind, protocol)
            opened.append(listener)
            listener.gate = gate
            listener.settimeout(0.0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port, *address[2:]))
            port = listener.getsockname()[1]  # of 0 the system's choice
            listener.listen(_BACKLOG)
    except OSError:
        for each in opened:
            each.close()
        raise
    return opened


def connection_class(gate: SocketGate, metrics: ServerMetrics) -> type[ServerConnection]:
    """Return a connection type that `gate` counts, whose statuses and closing codes are counted, and which holds little."""

    class BoundedConnection(ServerConnection):
        def __init__(self, protocol: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(protocol, *arguments, **options)
            self._address: Address = ()
            self._num_fragments = 0
            send_response = protocol.send_response

            def send_and_count(response: Any) -> None:
                metrics.handshakes.labels(int(response.status_code)).inc()
                send_response(response)

            protocol.send_response = send_and_count  # also of what the library refuses by itself, such as 405 and 431

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._address = transport.get_extra_info("peername") or ()
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            gate.leave(self._address)
            if (sent := self.protocol.close_sent) is not None:
                metrics.closes.labels(int(sent.code)).inc()
            super().connection_lost(exc)

        def send_data(self) -> None:
            # In one write: a client that leaves behind its pings would make asyncio log every pong.
            parts = self.protocol.data_to_send()
            if self.transport.is_closing():
                return
            if joined := b"".join(parts):
                self.transport.write(joined)
            if b"" not in parts:  # which stands for the end of what is sent
                return
            if self.transport.can_write_eof():
                with contextlib.suppress(OSError, RuntimeError):
                    self.transport.write_eof()
            else:
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                metrics.closed_sockets.labels("unread").inc()
                self.transport.abort()

        def process_event(self, event: Any) -> None:
            if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
                self._num_fragments = 0 if event.fin else self._num_fragments + 1
                if self._num_fragments > MAX_FRAGMENTS:
                    metrics.closed_sockets.labels("fragments").inc()
                    self.transport.abort()
                    return
            super().process_event(event)

    return BoundedConnection
