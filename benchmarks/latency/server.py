"""A policy server under load: clients that ask as fast as they are answered, and whether each gets what it would get alone.

All clients live in one thread and speak bare websockets: what is measured is the server, not clients that compete for a
lock.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import ClientConnection, connect

from rfedge.benchmarks.latency.run import sample_observations
from rfedge.benchmarks.latency.serving_process import ServingProcess
from rfedge.errors import ConfigError, ContractError, GateError
from rfedge.messages import STATE_SIZE, Observation
from rfedge.policies import find_bundle
from rfedge.records.machine import Measurement, provenance
from rfedge.records.plan import Option, check_least
from rfedge.records.statistics import Summary, summarise
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.server.wire import pack, parse_error_line, unpack

INSTRUCTIONS: Final = (
    "pull the handle to open the drawer",
    "push the button to turn on the led light",
    "slide down the switch",
)
NUM_FRAMES: Final = 16  # of each client, shown in turn
STEPS_PER_INSTRUCTION: Final = 50
NUM_WARMUP: Final = 5  # answers of each client left out of the timings
SERVER_DEADLINE_MS: Final = 10_000.0  # answers are to be slow under load, not cut short


@dataclass(frozen=True)
class ServerPlan:
    bundle: Annotated[Path, Option("Bundle folder or shipped policy to serve.", argument=True, parse=find_bundle)]
    clients: Annotated[int, Option("Clients that ask as fast as they are answered.")] = 8
    seconds: Annotated[float, Option("For how long.")] = 60.0
    threads: Annotated[int, Option("Threads of the policy.")] = 1  # of the policy, in the server and in the solo runs
    seed: Annotated[int, Option("Seed of the frames.")] = 0
    # `STEPS_PER_INSTRUCTION` frames each; empty for sentences of ours
    instructions: Annotated[
        tuple[str, ...],
        Option("What the clients ask for, in turn; needed for a bundle with few sentences.", flag="--instruction"),
    ] = ()

    def __post_init__(self) -> None:
        check_least(1, {"clients": self.clients})
        check_least(0, {"threads": self.threads, "seed": self.seed})
        if not self.seconds > 0:
            raise ConfigError("seconds", got=self.seconds, expected="above 0", remedy="Raise it.")


class ServerReport(Measurement):
    format: Literal["rfedge-server"] = "rfedge-server"
    schema_version: Literal[2] = 2
    policy: str
    precision: str
    bundle: str
    threads: int
    num_clients: int
    duration_s: float
    num_answered: int  # frames answered by actions; `num_late` others got an error because their turn came too late
    num_late: int
    num_mixed: int  # answers that differ in any bit from what the same client got alone
    requests_per_s: float
    requests_per_client: tuple[int, int]  # fewest and most answers of a client: fair if they are near
    round_trip_ms: Summary  # from sending a frame to its actions, as the client saw it
    # queue_ms, infer_ms: the server's own part: the wait for the policy, and the policy
    queue_ms: Summary
    infer_ms: Summary
    exit_status: int  # of the server after SIGTERM


@dataclass(slots=True, eq=False)
class _Client:
    """One client: its frames and its answers."""

    frames: list[Observation]
    instructions: Sequence[str]
    packed: dict[tuple[int, str], bytes] = field(default_factory=dict)
    answered: list[tuple[int, npt.NDArray[np.float32]]] = field(default_factory=list)
    num_late: int = 0
    times_ms: list[tuple[float, float, float]] = field(default_factory=list)  # round trip, queue, inference

    def instruction(self, step: int) -> str:
        return self.instructions[step // STEPS_PER_INSTRUCTION % len(self.instructions)]

    async def ask(self, connection: ClientConnection, step: int) -> None:
        key = (step % NUM_FRAMES, self.instruction(step))
        if key not in self.packed:
            self.packed[key] = pack(self.frames[key[0]].to_dict("openpi") | {"prompt": key[1]})
        sent_s = time.perf_counter()
        await connection.send(self.packed[key])
        message = await connection.recv()
        round_trip_ms = 1000.0 * (time.perf_counter() - sent_s)
        if isinstance(message, str):
            kind, text = parse_error_line(message)
            if kind != "late":
                raise ContractError(text)
            self.num_late += 1
            return
        answer = unpack(message)
        self.answered.append((step, answer["actions"]))
        if step >= NUM_WARMUP or not self.times_ms:
            timing = answer["server_timing"]
            self.times_ms.append((round_trip_ms, timing["queue_ms"], timing["infer_ms"]))

    def count_mixed(self, policy: EdgePolicy) -> int:
        """Run what was answered on the policy alone; a frame that came too late never reached the server's state."""
        present, num_mixed = "", 0
        for step, actions in self.answered:
            if self.instruction(step) != present:
                present = self.instruction(step)
                policy.reset(present)
            num_mixed += not np.array_equal(policy.act(self.frames[step % NUM_FRAMES]).actions, actions)
        return num_mixed


def run_server(plan: ServerPlan) -> ServerReport:
    """Serve, stream, and repeat every client's frames alone.

    Raises:
        BackendUnavailableError: the server did not start.
        ArtifactError: the bundle cannot be loaded.
        ContractError: the bundle does not know an instruction, or the server refuses a frame.
    """
    token = secrets.token_hex(16)
    flags = ("--threads", str(plan.threads), "--max-connections", str(plan.clients + 8))
    asked = plan.instructions or INSTRUCTIONS
    with EdgePolicy.load(plan.bundle, settings=RuntimeSettings(threads=plan.threads)) as policy:
        for instruction in asked:
            policy.parts.encoder(instruction)
        clients = []
        for index in range(plan.clients):
            start = index % len(asked)  # clients begin with different instructions
            clients.append(_Client(_frames(policy, plan.seed + index), asked[start:] + asked[:start]))
        with ServingProcess(plan.bundle, *flags, "--deadline-ms", str(SERVER_DEADLINE_MS), token=token) as server:
            duration_s = asyncio.run(_stream(clients, server.url, token, plan.seconds))
            exit_status = server.terminate()
        counts = [len(client.answered) for client in clients]
        times_ms = np.array([times for client in clients for times in client.times_ms]).T
        return ServerReport(
            **provenance(),
            policy=policy.config.name,
            precision=policy.parts.precision,
            bundle=str(plan.bundle),
            threads=plan.threads,
            num_clients=plan.clients,
            duration_s=duration_s,
            num_answered=sum(counts),
            num_late=sum(client.num_late for client in clients),
            num_mixed=sum(client.count_mixed(policy) for client in clients),
            requests_per_s=sum(counts) / duration_s,
            requests_per_client=(min(counts), max(counts)),
            round_trip_ms=summarise(times_ms[0]),
            queue_ms=summarise(times_ms[1]),
            infer_ms=summarise(times_ms[2]),
            exit_status=exit_status,
        )


def _frames(policy: EdgePolicy, seed: int) -> list[Observation]:
    """Sample frames of noise that `policy` accepts, with a state if it reads one."""
    frames = sample_observations(policy.parts.contract, NUM_FRAMES, seed=seed)
    if not policy.config.proprioception:
        return frames
    states = np.random.default_rng(seed).uniform(-1.0, 1.0, (NUM_FRAMES, STATE_SIZE))
    return [dataclasses.replace(frame, state=state) for frame, state in zip(frames, states, strict=True)]


async def _stream(clients: Sequence[_Client], url: str, token: str, seconds: float) -> float:
    """Return for how long all of them streamed."""
    headers = {"Authorization": f"Bearer {token}"}
    options: dict[str, Any] = {"additional_headers": headers, "compression": None, "proxy": None}
    connections = await asyncio.gather(*(connect(url, **options) for _ in clients))
    try:
        for connection in connections:
            await connection.recv()  # the greeting
        started_s = time.monotonic()

        async def ask_on(client: _Client, connection: ClientConnection) -> None:
            step = 0
            while time.monotonic() < started_s + seconds or step == 0:
                await client.ask(connection, step)
                step += 1

        await asyncio.gather(*map(ask_on, clients, connections))
        return time.monotonic() - started_s
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


def assert_sound(report: ServerReport) -> None:
    """Check everything but speed. Raises GateError if states mixed, a request was late, or the server did not end well."""
    found = {
        "answers that differ from a solo run": report.num_mixed,
        "late answers": report.num_late,
        "exit status after SIGTERM": report.exit_status,
    }
    for subject, got in found.items():
        if got != 0:
            raise GateError(subject, got=got, expected="0", remedy="See the report for the rest.")


def assert_p99_ms(report: ServerReport, limit_ms: float) -> None:
    """Check the round trips. Raises GateError if their p99 is above the limit; the text has both."""
    measured = f"{report.round_trip_ms.p99:.1f} ms"
    if report.round_trip_ms.p99 > limit_ms:
        expected, remedy = f"at most {limit_ms:g} ms", "Measure on a quiet machine."
        raise GateError("p99 of round trips", got=measured, expected=expected, remedy=remedy)
