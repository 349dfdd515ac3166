"""Who gets in: paths, token, origin and the number of connections, decided before a websocket exists."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any, Final

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from rfedge.runtimes.server.metrics import CONTENT_TYPE, ServerMetrics
from rfedge.runtimes.server.security import is_authorised
from rfedge.runtimes.server.settings import ServerSettings
from rfedge.runtimes.server.worker import PolicyWorker

__all__ = ["SPARE_SOCKETS", "Door", "connection_class"]

logger = logging.getLogger(__name__)
# Sockets beyond `max_connections`, for handshakes under way and for /healthz and /metrics.
SPARE_SOCKETS: Final = 32


class Door:
    """Answers every HTTP request: a page, a refusal, or None for a websocket.

    Args:
        settings, metrics: of the server.
        worker: asked for its health.
        token: what a client must carry, or None.
    """

    def __init__(self, settings: ServerSettings, metrics: ServerMetrics, worker: PolicyWorker, token: str | None) -> None:
        self._settings: Final = settings
        self._metrics: Final = metrics
        self._worker: Final = worker
        self._token: Final = token
        self.num_inside = 0

    def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        """Decide about one request, as `process_request` of a websockets server."""
        response = self._decide(connection, request)
        self._metrics.count_handshake(HTTPStatus.SWITCHING_PROTOCOLS if response is None else response.status_code)
        return response

    def _decide(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":  # open to all: a supervisor has no token
            if self._worker.busy_s() > self._settings.hung_after_s:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the policy hangs\n")
            return connection.respond(HTTPStatus.OK, "OK\n")
        if request.path not in ("/", "/metrics"):
            return connection.respond(HTTPStatus.NOT_FOUND, "paths: / for websockets, /healthz, /metrics\n")
        # get_all: a header sent twice must not raise.
        given = request.headers.get_all("Authorization")
        if not is_authorised(given[0] if len(given) == 1 else None, self._token):
            response = connection.respond(HTTPStatus.UNAUTHORIZED, "send the header Authorization: Bearer TOKEN\n")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if request.path == "/metrics":
            response = connection.respond(HTTPStatus.OK, self._metrics.render())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        # Robots send no Origin, browsers always do: a page must not reach a server on its visitor's machine.
        if request.headers.get_all("Origin"):
            return connection.respond(HTTPStatus.FORBIDDEN, "not for web pages\n")
        if self.num_inside >= self._settings.max_connections:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{self._settings.max_connections} clients are connected already\n"
            )
        return None


def connection_class(max_sockets: int) -> type[ServerConnection]:
    """Return a connection type of which at most `max_sockets` live at once; the sockets of others are closed at once.

    `Door` counts websockets; whoever opens sockets and says nothing never comes to it.
    """
    open_sockets: set[Any] = set()

    class CountedConnection(ServerConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            open_sockets.add(self)
            if len(open_sockets) > max_sockets:
                logger.warning("more than %d open sockets: closing the newest", max_sockets)
                self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            open_sockets.discard(self)
            super().connection_lost(exc)

    return CountedConnection
