"""Real servers for tests: in a thread of this process, with a policy whose calls a test can hold back."""

import asyncio
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.sync.client import ClientConnection, connect

from rfedge.messages import Observation, PolicyState
from rfedge.runtimes import EdgePolicy
from rfedge.runtimes.policy.edge_policy import Inference
from rfedge.runtimes.server.app import PolicyServer
from rfedge.runtimes.server.settings import ServerSettings
from rfedge.runtimes.server.wire import pack, unpack


class GatedPolicy(EdgePolicy):
    """The real policy, whose calls wait for `gate` and are counted before and after it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.num_calls = 0

    def infer(self, observation: Observation, instruction: str, state: PolicyState) -> Inference:
        self.num_calls += 1
        self.entered.release()
        assert self.gate.wait(20)
        return super().infer(observation, instruction, state)


@contextmanager
def running(
    policy: EdgePolicy, *, token: str | None = None, tls: ssl.SSLContext | None = None, **settings: Any
) -> Iterator[tuple[PolicyServer, str]]:
    """Serve in a thread on a free port and yield (server, url); stopped cleanly at the end."""
    server = PolicyServer(policy, ServerSettings(**{"port": 0, **settings}), token=token, tls=tls)
    urls: list[str] = []
    ready = threading.Event()
    failures: list[BaseException] = []

    def announce(url: str) -> None:
        urls.append(url)
        ready.set()

    def run() -> None:
        try:
            asyncio.run(server.run(announce))
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        if urls:
            yield server, urls[0]
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
        if failures:
            raise failures[0]


@contextmanager
def client(url: str, **options: Any) -> Iterator[ClientConnection]:
    """A bare websocket, its greeting read."""
    with connect(url, **{"compression": None, "proxy": None, "close_timeout": 1, **options}) as connection:
        assert unpack(connection.recv(timeout=5))["server"] == "rfedge"  # type: ignore[arg-type]
        yield connection


def frame(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation(
        static=rng.integers(0, 256, (200, 200, 3), dtype=np.uint8), gripper=rng.integers(0, 256, (84, 84, 3), dtype=np.uint8)
    )


def ask(connection: ClientConnection, fields: dict[str, Any]) -> dict[str, Any] | str:
    """Send one request and return the answer's fields, or the text of an error."""
    connection.send(pack(fields))
    return receive(connection)


def receive(connection: ClientConnection) -> dict[str, Any] | str:
    answer = connection.recv(timeout=10)
    return answer if isinstance(answer, str) else unpack(answer)


def request(observation: Observation, instruction: str, convention: str = "openpi") -> dict[str, Any]:
    fields = observation.to_dict(convention)
    fields["prompt" if convention == "openpi" else "task"] = instruction
    return fields


def get(url: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """One HTTP GET: (status, body)."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def metric(url: str, name: str) -> float:
    """The value of one line of /metrics; 0.0 when it is not there yet."""
    for line in get(url, "/metrics")[1].splitlines():
        if line.startswith(f"{name} "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def raw_socket(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)
