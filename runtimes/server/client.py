"""A policy that runs on another machine: the client of `rfedge serve`. It needs numpy, msgpack and websockets.

The control loop must not wait for a network. A thread of its own holds the connection, connects again after a loss, and
matches answers to requests by their order; `act` waits for its answer up to the deadline and no longer.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.uri import parse_uri

from rfedge.arrays import Float32
from rfedge.errors import ConfigError, ContractError, PolicyUnavailableError
from rfedge.messages import Observation, check_action
from rfedge.robot.conventions import Conventions
from rfedge.runtimes.policy.step import STAGES, PolicyStep
from rfedge.runtimes.server.security import is_loopback
from rfedge.runtimes.server.wire import pack, parse_error_line, unpack

__all__ = ["RemotePolicy"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
# What must be the same policy after a reconnection.
IDENTITY: Final = ("policy", "precision", "manifest_sha256", "chunk_size", "frame_stride", "control_hz", "resize")
# One frame may run at the server while one waits there; a third would be older than its turn.
MAX_OUTSTANDING: Final = 2
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 2.0
_PING_S: Final = 5.0
_MS_PER_S: Final = 1e3


class RemotePolicy(AbstractContextManager["RemotePolicy"]):
    """A `Policy` behind `rfedge serve` at ws:// or wss://HOST:PORT; use it as a context manager or call `close`.

    The recurrent state lives with the connection. After a loss it begins anew with the next frame: the frames seen before
    are not sent again, because replaying a window costs a policy call for each of its frames and the robot has been
    standing still since. `num_reconnects` counts it.

    Args:
        deadline_ms: `act` and `reset` return or raise within this time.
        connect_timeout_s: the constructor waits so long for a server.
        token: sent as `Authorization: Bearer`.
        tls: the client's side of TLS for wss, None for the system's certificates.

    Raises:
        ConfigError: `url` is none, or the server refuses this client (401, 403, 404, certificate).
        ContractError: what answers is not `rfedge serve`.
        PolicyUnavailableError: nobody answers.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_ms: float = 1000.0,
        connect_timeout_s: float = 10.0,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        _check_url(url, token)
        self.url: Final = url
        self._deadline_s: Final = deadline_ms / _MS_PER_S
        self._connect_timeout_s: Final = connect_timeout_s
        self._headers: Final = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._tls: Final = (tls or ssl.create_default_context()) if parse_uri(url).secure else None
        self._instruction: str | None = None
        self._metadata: dict[str, Any] = {}
        self._connection: ClientConnection | None = None
        self._waiting: deque[asyncio.Future[str | bytes]] = deque()
        self._refusal: Exception | None = None
        self._last_error = "no answer"
        self._num_connections = 0
        self._loop: Final = asyncio.new_event_loop()
        self._keeper: asyncio.Task[None]
        self._settled: Final = asyncio.Event()  # connected for the first time, or refused for good
        self._thread: Final = threading.Thread(target=self._run_loop, name="rfedge-remote-policy", daemon=True)
        self._thread.start()
        try:
            self._await(self._connected(), connect_timeout_s)
        except BaseException:
            self.close()
            raise

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata that the server sent of itself and its policy when it was connected first."""
        return self._metadata

    @property
    def chunk_size(self) -> int:
        return int(self._metadata["chunk_size"])

    @property
    def conventions(self) -> Conventions:
        """The control rate and camera geometry of the served policy; nothing where an older server does not say."""
        return Conventions(self._metadata.get("control_hz"), self._metadata.get("resize"))

    @property
    def frame_stride(self) -> int:
        return int(self._metadata["frame_stride"])

    @property
    def num_reconnects(self) -> int:
        """How often the connection was lost and made again, each time with a fresh state."""
        return max(self._num_connections - 1, 0)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the server; a second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(lambda: self._keeper.cancel())
            self._thread.join()

    def reset(self, instruction: str) -> None:
        """Start a new instruction with a fresh state.

        After ContractError (refused) or PolicyUnavailableError the one before still holds.
        """
        self._await(self._ask(pack({"reset": True, "task": instruction})), self._deadline_s)
        self._instruction = instruction

    def act(self, observation: Observation) -> PolicyStep:
        """Predict the next actions for the instruction of the last `reset`.

        `timings_ms` holds the server's stages; its `total` is the whole round trip as this side saw it.

        Raises:
            ContractError: the observation does not fit, `reset` was never called, or the server sends no action.
            PolicyUnavailableError: there is no connection (raised at once) or no answer within the deadline.
        """
        if self._instruction is None:
            expected = "reset(instruction) first"
            raise ContractError("policy", got="act() without an instruction", expected=expected, remedy="Call it once.")
        started_s = time.perf_counter()
        observation.check()
        fields = observation.to_dict() | {"task": self._instruction, "deadline_ms": self._deadline_s * _MS_PER_S}
        if not self._metadata["uses_state"]:
            fields.pop("observation.state", None)
        elif observation.state is not None:
            fields["observation.state"] = observation.state.astype(np.float64)
        answer = self._await(self._ask(pack(fields)), self._deadline_s)
        return _policy_step(answer, self.chunk_size, (time.perf_counter() - started_s) * _MS_PER_S)

    def _await(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Run a coroutine in the thread and wait for it no longer than `timeout_s`."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            future.cancel()
            got = f"no answer in {timeout_s * _MS_PER_S:.0f} ms" if self._connection is not None else self._last_error
            raise self._unavailable(got) from None

    def _unavailable(self, got: str) -> PolicyUnavailableError:
        remedy = "Start it with `rfedge serve`, or raise the deadline."
        return PolicyUnavailableError(f"server {self.url}", got=got, expected="an answer in time", remedy=remedy)

    # From here on everything runs in the thread.

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._keeper = self._loop.create_task(self._keep_connected())
        try:
            self._loop.run_until_complete(asyncio.gather(self._keeper, return_exceptions=True))
            pending = asyncio.all_tasks(self._loop)
            for task in pending:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        finally:
            self._loop.close()

    async def _keep_connected(self) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                await self._serve_one_connection()
                delay_s = _FIRST_DELAY_S
            except (OSError, asyncio.TimeoutError, InvalidHandshake, ConnectionClosed, EOFError) as error:
                self._last_error = " ".join(str(error).split()) or type(error).__name__
            except Exception as error:
                # A refusal or a bug. Trying again would not help: the caller gets the error, for good.
                self._refusal = error
                self._settled.set()
                await self._loop.create_future()  # until `close`
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _LONGEST_DELAY_S)

    async def _serve_one_connection(self) -> None:
        """Connect, check who is there, and hand out answers until the connection is lost."""
        try:
            connection = await connect(
                self.url,
                additional_headers=self._headers,
                compression=None,
                proxy=None,  # a robot's server is not behind what a shell's http_proxy names
                ssl=self._tls,
                open_timeout=self._connect_timeout_s,
                ping_interval=_PING_S,
                ping_timeout=_PING_S,
                close_timeout=1.0,
            )
        except InvalidStatus as error:
            if error.response.status_code in (401, 403, 404):
                raise self._refused(f"HTTP {error.response.status_code}", error.response.body) from None
            raise
        except ssl.SSLCertVerificationError as error:
            raise self._refused(f"a certificate that does not verify ({error.verify_message})") from None
        try:
            self._check_metadata(await asyncio.wait_for(connection.recv(), self._connect_timeout_s))
            self._connection = connection
            self._num_connections += 1
            if self._num_connections > 1:
                logger.warning("connected again to %s: the policy's memory begins anew", self.url)
            self._settled.set()
            async for message in connection:
                if not self._waiting:
                    break  # it answers what nobody asked
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_result(message)
            self._last_error = f"connection closed, {connection.close_reason or connection.close_code}"
        except ConnectionClosed as error:
            self._last_error = " ".join(str(error).split())
        except asyncio.CancelledError:
            await connection.close()
            raise
        finally:
            self._connection = None
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_exception(self._unavailable(self._last_error))
            connection.transport.abort()  # no closing handshake: whoever is lost would not take part in it

    def _refused(self, got: str, body: bytes | bytearray | None = None) -> ConfigError:
        words = " ".join((body or b"").decode(errors="replace").split())[:200]
        expected, remedy = "to be let in", "Check address, token and certificate."
        return ConfigError(f"server {self.url}", got=f"{got}: {words}" if words else got, expected=expected, remedy=remedy)

    def _check_metadata(self, message: str | bytes) -> None:
        metadata = unpack(message) if isinstance(message, bytes) else {}
        numbers = [metadata.get("chunk_size"), metadata.get("frame_stride")]
        known = metadata.get("server") == "rfedge" and metadata.get("protocol") == 1
        if not known or not all(type(number) is int and number >= 1 for number in numbers):
            raise ContractError(
                f"server {self.url}",
                got=f"metadata with keys {sorted(metadata)}"[:200],
                expected="those of `rfedge serve`, protocol 1",
                remedy="Check the address, or install the same version on both sides.",
            )
        metadata.setdefault("uses_state", False)
        if not self._metadata:
            self._metadata = metadata
        old, new = ({key: side.get(key) for key in IDENTITY} for side in (self._metadata, metadata))
        if old != new:
            raise ContractError(f"server {self.url}", got=new, expected=f"{old}, as before", remedy="Start the run again.")

    async def _connected(self) -> None:
        await self._settled.wait()
        if self._refusal is not None:
            raise self._refusal

    async def _ask(self, data: bytes) -> dict[str, Any]:
        if self._refusal is not None:
            raise self._refusal
        if self._connection is None:
            raise self._unavailable(self._last_error)
        if len(self._waiting) >= MAX_OUTSTANDING:
            raise self._unavailable(f"{len(self._waiting)} earlier requests without an answer")
        return await self._exchange(self._connection, data)

    async def _exchange(self, connection: ClientConnection, data: bytes) -> dict[str, Any]:
        waiter: asyncio.Future[str | bytes] = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            await connection.send(data)
        except ConnectionClosed:
            pass  # the reader finds out too, and says why
        except asyncio.CancelledError:
            connection.transport.abort()  # the other side does not read: a part of a frame may be on its way
            waiter.cancel()
            raise
        message = await waiter
        if isinstance(message, str):
            kind, text = parse_error_line(message)
            raise (ContractError(text) if kind in ("refused", "malformed") else self._unavailable(f"{kind}: {text}"))
        return unpack(message)


def _check_url(url: str, token: str | None) -> None:
    try:
        parsed = parse_uri(url)
    except (InvalidURI, ValueError):
        remedy = "Check --server."
        raise ConfigError("server", got=repr(url), expected="ws://HOST:PORT or wss://HOST:PORT", remedy=remedy) from None
    if token is not None and not parsed.secure and not is_loopback(parsed.host):
        logger.warning("the token goes to %s in the clear: use wss", parsed.host)


def _policy_step(answer: Mapping[str, Any], chunk_size: int, round_trip_ms: float) -> PolicyStep:
    actions = answer.get("actions")
    if not isinstance(actions, np.ndarray) or actions.shape[:1] != (chunk_size,):
        got = f"shape {actions.shape}" if isinstance(actions, np.ndarray) else f"a {type(actions).__name__}"
        raise ContractError("actions of the server", got=got, expected=f"({chunk_size}, 7)", remedy="Check what it serves.")
    check_action(actions)
    own: Float32 = actions.astype(np.float32)
    timing_ms = answer.get("server_timing")
    timing_ms = timing_ms if isinstance(timing_ms, dict) else {}
    stages = {stage: timing_ms.get(f"{stage}_ms") for stage in STAGES if stage != "total"}
    known = {stage: float(value) for stage, value in stages.items() if isinstance(value, (int, float))}
    return PolicyStep(actions=own, timings_ms=known | {"total": round_trip_ms})
