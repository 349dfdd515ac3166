"""Who gets in: host, origin, paths, token and the number of connections, decided before a websocket exists."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from rfedge.runtimes.server.metrics import CONTENT_TYPE, ServerMetrics
from rfedge.runtimes.server.security import is_authorised, is_loopback
from rfedge.runtimes.server.session import PolicyWorker
from rfedge.runtimes.server.settings import ServerSettings
from rfedge.runtimes.server.sockets import SocketGate


@dataclass(frozen=True, slots=True)
class Admission:
    """Answers every HTTP request: a page, a refusal, or None for a websocket."""

    settings: ServerSettings
    metrics: ServerMetrics
    worker: PolicyWorker
    token: str | None
    gate: SocketGate

    def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        response = self._decide(connection, request)
        if response is None:
            self.gate.enter(connection.remote_address)
        return response

    def _decide(self, connection: ServerConnection, request: Request) -> Response | None:
        # Robots send no Origin, browsers always do: a page must not reach a server on its visitor's machine.
        if request.headers.get_all("Origin"):
            return connection.respond(HTTPStatus.FORBIDDEN, "not for web pages\n")
        # A name that a page's owner points at this machine makes a page of the same origin, which sends none.
        hosts = request.headers.get_all("Host")
        if is_loopback(self.settings.host) and not all(self._is_ours(host) for host in hosts):
            return connection.respond(HTTPStatus.FORBIDDEN, "ask for 127.0.0.1 or localhost; --allow-host names others\n")
        if request.path == "/healthz":  # open to all: a supervisor has no token
            if self.worker.busy_s() > self.settings.hung_after_s:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the policy hangs\n")
            return connection.respond(HTTPStatus.OK, "OK\n")
        if request.path not in ("/", "/metrics"):
            return connection.respond(HTTPStatus.NOT_FOUND, "paths: / for websockets, /healthz, /metrics\n")
        # get_all: a header sent twice must not raise.
        given = request.headers.get_all("Authorization")
        if not is_authorised(given[0] if len(given) == 1 else None, self.token):
            response = connection.respond(HTTPStatus.UNAUTHORIZED, "send the header Authorization: Bearer TOKEN\n")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if request.path == "/metrics":
            response = connection.respond(HTTPStatus.OK, self.metrics.render())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if self.gate.num_clients >= self.settings.max_connections:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{self.settings.max_connections} clients are connected already\n"
            )
        return None

    def _is_ours(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        if not port.isdecimal():  # no port, or the end of an IPv6 address
            name = host
        name = name.strip("[]").lower()
        return is_loopback(name) or name in self.settings.allowed_hosts
