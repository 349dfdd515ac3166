"""What a policy server stands: many clients at once, thousands of malformed messages, and being killed.

    streaming   100 clients connect, 8 of them stream for a minute; every answer is compared with a solo run
    malformed   10,000 broken, lying or cut-off messages; a good client is served between them, nothing is left behind
    loss        a control loop whose server is killed in the middle of an episode, and comes back or does not

The server is `rfedge serve` in a process of its own, with a token; the policy is `tiny` with random weights unless a
bundle is given.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import psutil
from websockets.sync.client import connect

from rfedge.benchmarks.latency.loop_policy import make_loop_bundle
from rfedge.benchmarks.latency.malformed import KINDS, Target, send_malformed
from rfedge.benchmarks.latency.server_loss import LossPart, server_outage
from rfedge.benchmarks.latency.server_streams import StreamingPart, bearer, frames_for, stream
from rfedge.benchmarks.latency.serving_process import ServingProcess
from rfedge.errors import ConfigError, GateError
from rfedge.records.machine import Measurement, provenance
from rfedge.records.plan import check_least
from rfedge.records.record import Record
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.server.wire import pack, unpack

__all__ = ["INSTRUCTIONS", "MalformedPart", "ServerPlan", "ServerReport", "assert_p99_ms", "assert_sound", "run_server"]

SERVER_SCHEMA_VERSION: Final = 1
INSTRUCTIONS: Final = (
    "pull the handle to open the drawer",
    "push the button to turn on the led light",
    "slide down the switch",
)
MAX_MESSAGE_BYTES: Final = 300_000
WARMUP_MESSAGES: Final = 560  # malformed ones before memory is taken as its beginning
MESSAGES_PER_GOOD_CLIENT: Final = 250
SERVER_DEADLINE_MS: Final = 10_000.0  # the streams are to be slow under load, not cut short
# Gates of `assert_sound`.
MAX_GROWTH_BYTES: Final = 8 << 20
DEADLINE_SLACK_MS: Final = 50.0
_SETTLE_S: Final = 5.0
# (what is measured, done, total)
ServerProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ServerPlan:
    """What to measure.

    Attributes:
        bundle: what to serve; None makes one with random weights, which needs the export extra.
        clients: connected at once; `streaming` of them ask as fast as they are answered, for `seconds`.
        malformed: messages.
        deadline_ms: of the client whose server is killed.
        threads: of the policy, in the server and in the solo runs.
        seed: of frames and malformed messages.
        instructions: what the clients ask for.
    """

    bundle: Path | None = None
    clients: int = 100
    streaming: int = 8
    seconds: float = 60.0
    malformed: int = 10_000
    deadline_ms: float = 200.0
    threads: int = 1
    seed: int = 0
    instructions: tuple[str, ...] = INSTRUCTIONS

    def __post_init__(self) -> None:
        """Refuse a plan that measures nothing.

        Raises:
            ConfigError: a number is too small, or more clients stream than connect.
        """
        check_least(1, {"clients": self.clients, "streaming": self.streaming, "malformed": self.malformed})
        check_least(0, {"threads": self.threads, "seed": self.seed})
        if not (self.seconds > 0 and self.deadline_ms > 0):
            raise ConfigError(
                "seconds and deadline-ms", got="a number that is not positive", expected="above 0", remedy="Raise it."
            )
        if self.streaming > self.clients:
            raise ConfigError(
                "streaming", got=self.streaming, expected=f"at most {self.clients} (clients)", remedy="Lower it."
            )


class MalformedPart(Record):
    """What malformed messages left behind in the server's process.

    Attributes:
        per_kind: how many of each of `rfedge.benchmarks.latency.malformed.KINDS`.
        num_good_served: good clients between and after them that got the right action, of `num_good`.
        rss_bytes, num_files, num_threads: (before, after), of the server; before is after `WARMUP_MESSAGES`.
        log_lines: what the server had to say about them: nothing, if none of them was a fault of its own.
    """

    num_messages: int
    per_kind: dict[str, int]
    duration_s: float
    num_good: int
    num_good_served: int
    rss_bytes: tuple[int, int]
    num_files: tuple[int, int]
    num_threads: tuple[int, int]
    log_lines: tuple[str, ...]


class ServerReport(Measurement):
    """The whole measurement.

    Attributes:
        exit_status: of the server after SIGTERM, with the clients gone.
    """

    format: Literal["rfedge-server"] = "rfedge-server"
    schema_version: Literal[1] = SERVER_SCHEMA_VERSION
    policy: str
    precision: str
    bundle: str | None
    threads: int
    streaming: StreamingPart
    malformed: MalformedPart
    loss: LossPart
    exit_status: int


def run_server(plan: ServerPlan, *, progress: ServerProgress = lambda *_: None) -> ServerReport:
    """Measure everything in the plan.

    Raises:
        BackendUnavailableError: the server did not start, or no bundle was given and the exporter is not installed.
        ArtifactError: the bundle cannot be loaded.
        ContractError: the bundle does not know an instruction.
    """
    token = secrets.token_hex(16)
    flags = (
        *("--threads", str(plan.threads)),
        *("--max-connections", str(plan.clients + 8)),
        *("--max-message-bytes", str(MAX_MESSAGE_BYTES)),
        *("--deadline-ms", str(SERVER_DEADLINE_MS)),
    )
    with tempfile.TemporaryDirectory() as folder:
        progress("bundle", 0, 1)
        bundle = plan.bundle or make_loop_bundle(Path(folder))
        progress("bundle", 1, 1)
        with EdgePolicy.load(bundle, settings=RuntimeSettings(threads=plan.threads)) as policy:
            for instruction in plan.instructions:
                policy.parts.encoder(instruction)
            with ServingProcess(bundle, *flags, token=token) as server:
                streaming = stream(
                    policy,
                    server.url,
                    token,
                    num_clients=plan.clients,
                    num_streaming=plan.streaming,
                    seconds=plan.seconds,
                    instructions=plan.instructions,
                    seed=plan.seed,
                    progress=progress,
                )
                malformed = _malform(policy, server, token, plan, progress)
                exit_status = server.terminate()
            progress("loss", 0, 1)
            loss = server_outage(
                policy,
                bundle,
                flags,
                token,
                instruction=plan.instructions[0],
                deadline_ms=plan.deadline_ms,
                seed=plan.seed,
            )
            progress("loss", 1, 1)
            return ServerReport(
                **provenance(),
                policy=policy.config.name,
                precision=policy.parts.precision,
                bundle=None if plan.bundle is None else str(plan.bundle),
                threads=plan.threads,
                streaming=streaming,
                malformed=malformed,
                loss=loss,
                exit_status=exit_status,
            )


def _malform(
    policy: EdgePolicy, server: ServingProcess, token: str, plan: ServerPlan, progress: ServerProgress
) -> MalformedPart:
    rng, names = np.random.default_rng(plan.seed), list(KINDS)
    target, process = Target(server.url, token, MAX_MESSAGE_BYTES), psutil.Process(server.pid)
    good = _GoodClient(policy, server.url, token, plan.instructions[0], seed=plan.seed)
    for index in range(WARMUP_MESSAGES):
        send_malformed(target, names[index % len(names)], rng)
    good.ask()
    num_lines = len(server.errors().splitlines())
    before = _settled(process)
    counts: Counter[str] = Counter()
    started_s = time.monotonic()
    for index in range(plan.malformed):
        name = names[index % len(names)]
        send_malformed(target, name, rng)
        counts[name] += 1
        if index % MESSAGES_PER_GOOD_CLIENT == MESSAGES_PER_GOOD_CLIENT - 1 or index == plan.malformed - 1:
            good.ask()
            progress("malformed", index + 1, plan.malformed)
    duration_s = time.monotonic() - started_s
    after = _settled(process)
    return MalformedPart(
        num_messages=plan.malformed,
        per_kind=dict(counts),
        duration_s=duration_s,
        num_good=good.num_asked,
        num_good_served=good.num_right,
        rss_bytes=(before[0], after[0]),
        num_files=(before[1], after[1]),
        num_threads=(before[2], after[2]),
        log_lines=tuple(server.errors().splitlines()[num_lines:]),
    )


class _GoodClient:
    """Connects, asks one frame, and knows the answer."""

    def __init__(self, policy: EdgePolicy, url: str, token: str, instruction: str, *, seed: int) -> None:
        (frame,) = frames_for(policy, 1, seed=seed)
        policy.reset(instruction)
        self._expected = policy.act(frame).actions
        self._request = pack(frame.to_dict("openpi") | {"prompt": instruction})
        self._url, self._headers = url, bearer(token)
        self.num_asked = self.num_right = 0

    def ask(self) -> None:
        self.num_asked += 1
        with connect(self._url, additional_headers=self._headers, compression=None, proxy=None) as connection:
            connection.recv(timeout=_SETTLE_S)
            connection.send(self._request)
            message = connection.recv(timeout=SERVER_DEADLINE_MS / 1000.0)
            if isinstance(message, bytes):
                self.num_right += np.array_equal(unpack(message)["actions"], self._expected)


def _settled(process: psutil.Process) -> tuple[int, int, int]:
    """Return (resident bytes, open files, threads) once the last connections are gone."""
    deadline_s = time.monotonic() + _SETTLE_S
    num_files = process.num_fds()
    while time.monotonic() < deadline_s:
        time.sleep(0.2)
        last, num_files = num_files, process.num_fds()
        if num_files >= last:
            break
    return process.memory_info().rss, num_files, process.num_threads()


def assert_sound(report: ServerReport) -> None:
    """Check everything but speed.

    Raises:
        GateError: states mixed, a request was lost, a good client was not served, something leaked or was logged, or the
            client of a lost server was held up, moved, or not connected again; the text names the first.
    """
    streaming, malformed, loss = report.streaming, report.malformed, report.loss
    growth_bytes = malformed.rss_bytes[1] - malformed.rss_bytes[0]
    checks: list[tuple[str, object, str, bool]] = [
        ("answers that differ from a solo run", streaming.num_mixed, "0", streaming.num_mixed == 0),
        ("late answers", streaming.num_late, "0", streaming.num_late == 0),
        (
            "good clients served between malformed messages",
            malformed.num_good_served,
            str(malformed.num_good),
            malformed.num_good_served == malformed.num_good,
        ),
        ("growth of memory", f"{growth_bytes} bytes", f"at most {MAX_GROWTH_BYTES}", growth_bytes <= MAX_GROWTH_BYTES),
        (
            "open files",
            malformed.num_files[1],
            str(malformed.num_files[0]),
            malformed.num_files[1] <= malformed.num_files[0],
        ),
        (
            "threads",
            malformed.num_threads[1],
            str(malformed.num_threads[0]),
            malformed.num_threads[1] <= malformed.num_threads[0],
        ),
        ("lines in the log", len(malformed.log_lines), "0", not malformed.log_lines),
        ("exit status after SIGTERM", report.exit_status, "0", report.exit_status == 0),
        (
            "time to an error without a server",
            f"{loss.slowest_error_ms:.0f} ms",
            f"at most {loss.deadline_ms:g} ms and {DEADLINE_SLACK_MS:g} ms of slack",
            loss.slowest_error_ms <= loss.deadline_ms + DEADLINE_SLACK_MS,
        ),
        ("zero motion without a server", loss.held_still, "True", loss.held_still and loss.num_held > 0),
        ("reconnections", loss.num_reconnects, "1", loss.num_reconnects == 1),
        ("wrong actions after the reconnection", loss.num_wrong, "0", loss.num_wrong == 0),
        ("end of a run whose server stays away", loss.ended, "misses", loss.ended == "misses"),
    ]
    for subject, got, expected, holds in checks:
        if not holds:
            raise GateError(subject, got=got, expected=expected, remedy="See the report for the rest.")


def assert_p99_ms(report: ServerReport, limit_ms: float) -> None:
    """Check the round trips of the streaming clients.

    Raises:
        GateError: their p99 is above the limit; the text has both.
    """
    measured_ms = report.streaming.round_trip_ms.p99
    if measured_ms > limit_ms:
        raise GateError(
            "p99 of round trips",
            got=f"{measured_ms:.1f} ms",
            expected=f"at most {limit_ms:g} ms",
            remedy="Measure on a quiet machine.",
        )
