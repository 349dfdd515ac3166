"""The server: one asyncio loop for the sockets, one thread for the policy, one session for each connection.

On connecting a client gets a map of metadata. Then each message is answered by one: a frame by `actions` and
`server_timing`, a failed request by a text frame "kind: sentence" (openpi's client raises it), see `wire.ERROR_KINDS`.
A request that does not fit leaves connection and state as they were; bytes that are no message end the connection.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

import rfedge
from rfedge.bundle.artifact import MANIFEST_NAME, hash_file
from rfedge.errors import ConfigError, ContractError, PolicyUnavailableError, explain
from rfedge.messages import ACTION_SIZE, GRIPPER_IMAGE_SHAPE, STATE_NAMES, STATIC_IMAGE_SHAPE
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.server.admission import Admission
from rfedge.runtimes.server.metrics import ServerMetrics
from rfedge.runtimes.server.requests import Request, RequestRules, parse_request
from rfedge.runtimes.server.session import Message, MessageReader, PolicyWorker, Session
from rfedge.runtimes.server.settings import ServerSettings
from rfedge.runtimes.server.sockets import SocketGate, connection_class, open_listeners
from rfedge.runtimes.server.wire import MAX_LIST_ITEMS, MalformedError, error_line, pack, unpack

logger = logging.getLogger(__name__)
PROTOCOL_VERSION: Final = 1
_MS_PER_S: Final = 1e3
_PING_S: Final = 20.0
# Frames that wait inside websockets; more wait in the socket.
_MAX_QUEUED_FRAMES: Final = 2


class _RequestFailed(Exception):  # noqa: N818 - an answer, not a fault of ours
    """One request has no action; the client receives why. `kind` is one of `wire.ERROR_KINDS`."""

    def __init__(self, kind: str, text: str, close_code: int | None = None) -> None:
        super().__init__(text)
        self.kind: Final = kind
        self.close_code: Final = close_code


class PolicyServer:
    """Serves one policy until `stop`; its thread uses the policy alone from now on, the caller closes it. Clients must carry
    the `token` in their Authorization header where there is one.
    """

    def __init__(
        self, policy: EdgePolicy, settings: ServerSettings, *, token: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.metrics: Final = ServerMetrics(policy=policy.config.name, precision=policy.parts.precision)
        self.settings: Final = settings
        self._policy: Final = policy
        self._tls: Final = tls
        self._rules: Final = RequestRules(
            max_instruction_characters=settings.max_instruction_characters,
            resize=policy.config.resize if settings.resize else None,
            uses_state=policy.config.proprioception,
        )
        self._metadata: Final = _metadata(policy, settings)
        self._worker: Final = PolicyWorker()
        self._gate: Final = SocketGate(self.metrics)
        self._admission: Final = Admission(settings, self.metrics, self._worker, token, self._gate)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Future[None] | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self._metadata)

    async def run(self, on_ready: Callable[[str], None] = lambda _: None) -> None:
        """Serve until `stop`; the request under way is answered, then every connection is closed with 1001.

        `on_ready` is called with the address, "ws://127.0.0.1:8000". ConfigError: it cannot be listened on.
        """
        self._loop = asyncio.get_running_loop()
        self._stopped = self._loop.create_future()
        settings = self.settings
        quiet = logging.getLogger(f"{__name__}.handshakes")
        quiet.disabled = True  # a traceback for each garbled handshake; ours are counted
        try:
            listeners = open_listeners(settings.host, settings.port, self._gate)
        except OSError as error:
            self._worker.close()
            raise ConfigError(
                f"address {settings.host}:{settings.port}",
                got=error.strerror or str(error),
                expected="a free one of this machine",
                remedy="Choose another --host or --port.",
            ) from None
        watch = asyncio.create_task(self._watch_policy())
        try:
            servers = [
                await serve(
                    self._handle,
                    sock=listener,
                    process_request=self._admission,
                    create_connection=connection_class(self._gate, self.metrics),
                    compression=None,  # a small message could unfold to a large one
                    max_size=settings.max_message_bytes,
                    max_queue=_MAX_QUEUED_FRAMES,
                    open_timeout=settings.handshake_timeout_s,
                    close_timeout=settings.send_timeout_s,
                    ping_interval=_PING_S,  # an idle client that answers stays, one that is gone leaves
                    ping_timeout=_PING_S,
                    server_header=None,
                    ssl=self._tls,
                    logger=quiet,
                )
                for listener in listeners
            ]
            on_ready(self._url(listeners[0].getsockname()))
            await self._stopped
            logger.info("stopping")
            for server in servers:
                # Not the connections: each handler answers what is under way and then says 1001 itself.
                server.close(close_connections=False)
            for server in servers:
                await server.wait_closed()
        finally:
            watch.cancel()
            self._policy.cancel()  # of a call that hangs; others have ended
            self._worker.close()

    async def _watch_policy(self) -> None:
        """End calls that hang, where the backend can: their client gets an error, the others their turn."""
        while True:
            await asyncio.sleep(min(self.settings.hung_after_s / 4, 1.0))
            if self._worker.busy_s() > self.settings.hung_after_s:
                logger.error("a policy call takes longer than %g s and is ended", self.settings.hung_after_s)
                self._policy.cancel()

    def stop(self) -> None:
        """End `run`; a second call does nothing, and any thread may call."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(None)

    def _url(self, address: tuple[Any, ...]) -> str:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{'ws' if self._tls is None else 'wss'}://{host}:{address[1]}"

    @property
    def _stopping(self) -> bool:
        return self._stopped is not None and self._stopped.done()

    async def _handle(self, connection: ServerConnection) -> None:
        self.metrics.connections.inc()
        reader = MessageReader(connection)
        try:
            await self._send(connection, pack(self._metadata))
            await self._converse(connection, reader)
        except ConnectionClosed:
            pass  # it left
        except asyncio.TimeoutError:
            connection.transport.abort()  # it does not read: a closing handshake would wait for it too
        except Exception:
            logger.exception("a connection failed")
            await connection.close(1011, "internal error, see the server's log")
        finally:
            await reader.close()
            self.metrics.connections.dec()

    async def _converse(self, connection: ServerConnection, reader: MessageReader) -> None:
        session = Session(self._policy)
        previous_ms: float | None = None
        assert self._stopped is not None
        while True:
            watched: set[asyncio.Future[Any]] = {reader.reading(), self._stopped}
            await asyncio.wait(watched, timeout=self.settings.idle_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping:
                await connection.close(1001, "the server stops")
                return
            if not reader.reading().done():
                await connection.close(1000, f"idle for {self.settings.idle_timeout_s:g} s")
                return
            message = reader.take()
            try:
                answer = await self._answer(message, session, reader)
            except _RequestFailed as failure:
                self.metrics.requests.labels(failure.kind).inc()
                await self._send(connection, error_line(failure.kind, str(failure)))
                if failure.close_code is not None:
                    await connection.close(failure.close_code, failure.kind)
                    return
                continue
            if previous_ms is not None:
                answer["server_timing"]["prev_total_ms"] = previous_ms
            await self._send(connection, pack(answer))
            previous_ms = (time.monotonic() - message.arrived_s) * _MS_PER_S
            if "actions" in answer:
                self.metrics.observe_ms({"total": previous_ms})

    async def _answer(self, message: Message, session: Session, reader: MessageReader) -> dict[str, Any]:
        """Return the fields of the answer; ConnectionClosed where the client left before its turn came."""
        request = self._read(message)
        deadline_ms = min(self.settings.deadline_ms, request.deadline_ms or self.settings.deadline_ms)
        expires_s = message.arrived_s + deadline_ms / _MS_PER_S
        began_s = message.arrived_s

        def call() -> dict[str, Any]:
            nonlocal began_s
            began_s = time.monotonic()
            if began_s > expires_s:
                raise _too_late(deadline_ms)
            return session.answer(request)

        self.metrics.waiting.inc()
        try:
            answer = await self._wait(self._worker.submit(call), reader, expires_s, deadline_ms)
        except ContractError as error:
            raise _RequestFailed("refused", str(error)) from None
        except (_RequestFailed, ConnectionClosed):
            raise
        except PolicyUnavailableError as error:
            raise _RequestFailed("internal", str(error)) from None
        except Exception:
            logger.exception("the policy failed")
            raise _RequestFailed("internal", "the policy failed, see the server's log", close_code=1011) from None
        finally:
            self.metrics.waiting.dec()
        timing_ms = answer["server_timing"]
        timing_ms["queue_ms"] = (began_s - message.arrived_s) * _MS_PER_S
        is_frame = "actions" in answer
        self.metrics.requests.labels("ok" if is_frame else "reset").inc()
        if is_frame:
            self.metrics.observe_ms({name.removesuffix("_ms"): duration_ms for name, duration_ms in timing_ms.items()})
        return answer

    def _read(self, message: Message) -> Request:
        if isinstance(message.data, str):
            text = explain("message", got="a text frame", expected="a binary one", remedy="Pack it with msgpack.")
            raise _RequestFailed("refused", text)
        try:
            return parse_request(unpack(message.data), self._rules)
        except MalformedError as error:
            raise _RequestFailed("malformed", str(error), close_code=1007) from None
        except ContractError as error:
            raise _RequestFailed("refused", str(error)) from None

    async def _wait(
        self, call: Future[dict[str, Any]], reader: MessageReader, expires_s: float, deadline_ms: float
    ) -> dict[str, Any]:
        """Wait for a call of the worker, but not for one whose turn does not come in time or whose client left."""
        answer = asyncio.wrap_future(call)
        assert self._stopped is not None
        watched: set[asyncio.Future[Any]] = {answer, reader.reading(), self._stopped}
        while not answer.done():
            timeout_s = max(0.0, expires_s - time.monotonic())
            done, _ = await asyncio.wait(watched, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                break
            if not done:
                if call.cancel():
                    raise _too_late(deadline_ms)
                break  # it runs: no limit from here on but the client's own
            watched -= done  # each is news once
            if reader.reading() in done and reader.reading().exception() is not None and call.cancel():
                reader.take()
            if self._stopping and call.cancel():
                raise _RequestFailed("stopping", "the server stops", close_code=1001)
        return await answer

    async def _send(self, connection: ServerConnection, data: str | bytes) -> None:
        await asyncio.wait_for(connection.send(data), self.settings.send_timeout_s)


def _metadata(policy: EdgePolicy, settings: ServerSettings) -> dict[str, Any]:
    manifest = policy.parts.source / MANIFEST_NAME
    return {
        "server": "rfedge",
        "version": rfedge.__version__,
        "protocol": PROTOCOL_VERSION,
        "policy": policy.config.name,
        "precision": policy.parts.precision,
        "manifest_sha256": hash_file(manifest) if manifest.is_file() else None,
        "backend": policy.parts.backend,
        "backend_settings": dict(policy.parts.backbone.effective_settings()),
        "chunk_size": policy.chunk_size,
        "frame_stride": policy.frame_stride,
        "control_hz": policy.config.control_hz,
        "resize": policy.config.resize,
        "remembers_calls": policy.remembers_calls,
        "action": policy.parts.contract.action.model_dump(mode="json"),
        "state": list(STATE_NAMES),
        "action_size": ACTION_SIZE,
        "image_shapes": {"static": list(STATIC_IMAGE_SHAPE), "gripper": list(GRIPPER_IMAGE_SHAPE)},
        "resizes_images": settings.resize,
        "uses_state": policy.config.proprioception,
        "deadline_ms": float(settings.deadline_ms),
        "forced_past": list(policy.parts.forced_past[:MAX_LIST_ITEMS]),
    }


def _too_late(deadline_ms: float) -> _RequestFailed:
    return _RequestFailed(
        "late",
        explain(
            "request",
            got=f"more than {deadline_ms:g} ms in the queue",
            expected="its turn within the deadline",
            remedy="The frame is old: hold, and send a new one.",
        ),
    )
