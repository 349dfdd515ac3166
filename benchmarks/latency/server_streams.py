"""Many clients of one policy server at a time, and what each of them would have been told alone.

All of them live in one thread and speak bare websockets: what is measured is the server, not eight Python clients that
compete for a lock.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import ClientConnection, connect

from rfedge.benchmarks.latency.run import sample_observations
from rfedge.errors import ContractError
from rfedge.messages import STATE_SIZE, Observation
from rfedge.records.record import Record
from rfedge.records.statistics import Summary, summarise
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.server.wire import pack, parse_error_line, unpack

__all__ = ["StreamingPart", "bearer", "frames_for", "stream"]

NUM_FRAMES: Final = 16  # of each client, shown in turn
STEPS_PER_INSTRUCTION: Final = 50
NUM_WARMUP: Final = 5  # answers of each client left out of the timings
PROGRESS_EVERY_S: Final = 0.5
Actions = npt.NDArray[np.float32]


class StreamingPart(Record):
    """Clients that ask as fast as they are answered, beside others that are connected and silent.

    Attributes:
        num_connected: clients with an open connection, the silent ones included.
        num_answered: frames answered by actions; `num_late` others got an error because their turn came too late.
        num_mixed: answers that differ in any bit from what the same client got alone; of silent clients too, which each
            send one frame at the end.
        requests_per_client: fewest and most answers that a streaming client got: fair if they are near.
        round_trip_ms: from sending a frame to its actions, as the client saw it.
        queue_ms, infer_ms: the server's own part: the wait for the policy, and the policy.
    """

    num_connected: int
    num_streaming: int
    duration_s: float
    num_answered: int
    num_late: int
    num_mixed: int
    requests_per_s: float
    requests_per_client: tuple[int, int]
    round_trip_ms: Summary
    queue_ms: Summary
    infer_ms: Summary


@dataclass(slots=True, eq=False)
class _Client:
    """One client: its frames, and what it was told."""

    frames: list[Observation]
    packed: dict[tuple[int, str], bytes]
    instructions: Sequence[str]
    offset: int
    answered: list[tuple[int, Actions]] = field(default_factory=list)
    num_late: int = 0
    round_trips_ms: list[float] = field(default_factory=list)
    queues_ms: list[float] = field(default_factory=list)
    inferences_ms: list[float] = field(default_factory=list)

    def instruction(self, step: int) -> str:
        return self.instructions[(self.offset + step // STEPS_PER_INSTRUCTION) % len(self.instructions)]

    def request(self, step: int) -> bytes:
        key = (step % NUM_FRAMES, self.instruction(step))
        if key not in self.packed:
            self.packed[key] = pack(self.frames[key[0]].to_dict("openpi") | {"prompt": key[1]})
        return self.packed[key]


def frames_for(policy: EdgePolicy, count: int, *, seed: int) -> list[Observation]:
    """Draw frames of noise that `policy` accepts, with a state if it reads one."""
    frames = sample_observations(policy.parts.contract, count, seed=seed)
    if not policy.config.proprioception:
        return frames
    states = np.random.default_rng(seed).uniform(-1.0, 1.0, (count, STATE_SIZE))
    return [dataclasses.replace(frame, state=state) for frame, state in zip(frames, states, strict=True)]


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def stream(
    policy: EdgePolicy,
    url: str,
    token: str,
    *,
    num_clients: int,
    num_streaming: int,
    seconds: float,
    instructions: Sequence[str],
    seed: int,
    progress: Callable[[str, int, int], None],
) -> StreamingPart:
    """Connect `num_clients`, let the first `num_streaming` stream for `seconds`, and compare all with solo runs.

    Args:
        policy: the same bundle with the same settings in this process, for the solo runs.
        url, token: of the server.
        instructions: each client follows one for `STEPS_PER_INSTRUCTION` frames, then the next, beginning at another.
        seed: decides every frame.
        progress: called with (what, done, total).

    Raises:
        ContractError: the server refuses a frame.
    """
    clients = [
        _Client(frames_for(policy, NUM_FRAMES if index < num_streaming else 1, seed=seed + index), {}, instructions, index)
        for index in range(num_clients)
    ]
    num_connected, duration_s = asyncio.run(_run(clients, url, token, num_streaming, seconds, progress))
    num_mixed = 0
    for index, client in enumerate(clients):
        num_mixed += _count_mixed(policy, client)
        progress("solo runs", index + 1, num_clients)
    streaming = clients[:num_streaming]
    counts = [len(client.answered) for client in streaming]
    return StreamingPart(
        num_connected=num_connected,
        num_streaming=num_streaming,
        duration_s=duration_s,
        num_answered=sum(len(client.answered) for client in clients),
        num_late=sum(client.num_late for client in clients),
        num_mixed=num_mixed,
        requests_per_s=sum(counts) / duration_s,
        requests_per_client=(min(counts), max(counts)),
        round_trip_ms=_summary([client.round_trips_ms for client in streaming]),
        queue_ms=_summary([client.queues_ms for client in streaming]),
        infer_ms=_summary([client.inferences_ms for client in streaming]),
    )


async def _run(
    clients: list[_Client],
    url: str,
    token: str,
    num_streaming: int,
    seconds: float,
    progress: Callable[[str, int, int], None],
) -> tuple[int, float]:
    """Return how many were connected at once, and for how long the first ones streamed."""
    options: dict[str, Any] = {"additional_headers": bearer(token), "compression": None, "proxy": None}
    connections = await asyncio.gather(*(connect(url, **options) for _ in clients))
    try:
        for connection in connections:
            unpack(_binary(await connection.recv()))  # the greeting
        num_connected = len(connections)
        progress("connect", num_connected, num_connected)
        started_s = time.monotonic()
        reporting = asyncio.create_task(_report(started_s, seconds, progress))
        pairs = list(zip(clients, connections, strict=True))
        await asyncio.gather(
            *(_stream_one(client, connection, started_s + seconds) for client, connection in pairs[:num_streaming])
        )
        duration_s = time.monotonic() - started_s
        await reporting
        for client, connection in pairs[num_streaming:]:  # the silent ones are served too
            await _ask(client, connection, 0)
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))
    return num_connected, duration_s


async def _report(started_s: float, seconds: float, progress: Callable[[str, int, int], None]) -> None:
    while (elapsed_s := time.monotonic() - started_s) < seconds:
        progress("stream", int(elapsed_s), max(1, int(seconds)))
        await asyncio.sleep(min(PROGRESS_EVERY_S, seconds))
    progress("stream", max(1, int(seconds)), max(1, int(seconds)))


async def _stream_one(client: _Client, connection: ClientConnection, ends_s: float) -> None:
    step = 0
    while time.monotonic() < ends_s or step == 0:
        await _ask(client, connection, step)
        step += 1


async def _ask(client: _Client, connection: ClientConnection, step: int) -> None:
    request = client.request(step)
    sent_s = time.perf_counter()
    await connection.send(request)
    message = await connection.recv()
    round_trip_ms = (time.perf_counter() - sent_s) * 1000.0
    if isinstance(message, str):
        kind, text = parse_error_line(message)
        if kind != "late":
            raise ContractError(text)
        client.num_late += 1
        return
    answer = unpack(message)
    client.answered.append((step, answer["actions"]))
    if step >= NUM_WARMUP or not client.round_trips_ms:
        client.round_trips_ms.append(round_trip_ms)
        client.queues_ms.append(answer["server_timing"]["queue_ms"])
        client.inferences_ms.append(answer["server_timing"]["infer_ms"])


def _count_mixed(policy: EdgePolicy, client: _Client) -> int:
    """Run what was answered on the policy alone; a frame that came too late never reached the server's state."""
    present, num_mixed = "", 0
    for step, actions in client.answered:
        if client.instruction(step) != present:
            present = client.instruction(step)
            policy.reset(present)
        num_mixed += not np.array_equal(policy.act(client.frames[step % NUM_FRAMES]).actions, actions)
    return num_mixed


def _summary(samples_ms: list[list[float]]) -> Summary:
    return summarise(np.concatenate([np.array(each) for each in samples_ms]))


def _binary(message: str | bytes) -> bytes:
    assert isinstance(message, bytes), message
    return message
