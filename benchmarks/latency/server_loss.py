"""A control loop whose policy server is killed in the middle of an episode: does it hold in time, and go on after?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.benchmarks.latency.loop_policy import StillRobot
from rfedge.benchmarks.latency.server_streams import frames_for
from rfedge.benchmarks.latency.serving_process import ServingProcess
from rfedge.errors import PolicyUnavailableError
from rfedge.messages import POSE_SIZE, Observation
from rfedge.records.record import Record
from rfedge.runtimes.control.clock import RateKeeper
from rfedge.runtimes.control.controllers import make_controller
from rfedge.runtimes.control.lateness import LatePolicy
from rfedge.runtimes.control.loop import ControlLoop, StepReport
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.policy.step import PolicyStep
from rfedge.runtimes.server.client import RemotePolicy

__all__ = ["LossPart", "server_outage"]

RATE_HZ: Final = 30.0
STEPS_BEFORE: Final = 20
STEPS_AFTER: Final = 20
STOP_AFTER_MISSES: Final = 5
MAX_STEPS: Final = int(60 * RATE_HZ)  # a server that is not back after a minute does not come back


class LossPart(Record):
    """A server killed with SIGKILL at step `STEPS_BEFORE`, twice.

    Attributes:
        deadline_ms: of the client; `slowest_error_ms` is the longest that it took to say that there is no action.
        num_held: steps of the first run without a server, all with zero motion if `held_still`.
        back_after_s: from the start of a new server on the same port to the first action, loading included.
        num_reconnects: of the client in the first run.
        num_wrong: actions after the reconnection that differ from those of the policy alone on the same frames.
        ended: how the second run ended, in which nobody starts the server again: "misses" after `stop_after_misses`.
    """

    deadline_ms: float
    slowest_error_ms: float
    num_held: int
    held_still: bool
    back_after_s: float | None
    num_reconnects: int
    num_wrong: int
    stop_after_misses: int
    ended: str


class _Timed:
    """A remote policy whose failures are timed."""

    def __init__(self, policy: RemotePolicy) -> None:
        self._policy = policy
        self.slowest_error_ms = 0.0

    @property
    def chunk_size(self) -> int:
        return self._policy.chunk_size

    @property
    def frame_stride(self) -> int:
        return self._policy.frame_stride

    def reset(self, instruction: str) -> None:
        self._policy.reset(instruction)

    def act(self, observation: Observation) -> PolicyStep:
        started_s = time.perf_counter()
        try:
            return self._policy.act(observation)
        except PolicyUnavailableError:
            self.slowest_error_ms = max(self.slowest_error_ms, (time.perf_counter() - started_s) * 1000.0)
            raise


def server_outage(
    policy: EdgePolicy, bundle: Path, flags: tuple[str, ...], token: str, *, instruction: str, deadline_ms: float, seed: int
) -> LossPart:
    """Run the two scenes.

    Args:
        policy: the same bundle in this process, for the comparison.
        bundle, flags, token: of the servers.
        instruction: of the episodes.
        deadline_ms: of the client.
        seed: decides the frames.
    """
    frames = frames_for(policy, 16, seed=seed)
    with ExitStack() as stack:
        server = stack.enter_context(ServingProcess(bundle, *flags, token=token))
        remote = stack.enter_context(RemotePolicy(server.url, deadline_ms=deadline_ms, token=token))
        timed = _Timed(remote)
        revival = _Revival(lambda: stack.enter_context(ServingProcess(bundle, *flags, token=token, port=server.port)))
        steps: list[StepReport] = []
        after: list[StepReport] = []

        def watch(step: StepReport) -> None:
            steps.append(step)
            if step.index == STEPS_BEFORE:
                server.process.kill()
                server.process.wait()
                revival.start()
            elif step.index > STEPS_BEFORE and step.control.missing is None:
                revival.note_first_action()
                after.append(step)

        loop = ControlLoop(make_controller(timed, "closed-loop"), StillRobot(frames), pace=RateKeeper(RATE_HZ), late=_HOLD)
        loop.run(instruction, max_steps=MAX_STEPS, success=lambda: len(after) >= STEPS_AFTER, on_step=watch)
        revival.join()
        num_reconnects = remote.num_reconnects
        held = [step.sent for step in steps if step.control.missing == "unavailable"]
    with (
        ServingProcess(bundle, *flags, token=token) as server,
        RemotePolicy(server.url, deadline_ms=deadline_ms, token=token) as remote,
    ):
        last = _Timed(remote)

        def kill(step: StepReport) -> None:
            if step.index == STEPS_BEFORE:
                server.process.kill()
                server.process.wait()

        loop = ControlLoop(make_controller(last, "closed-loop"), StillRobot(frames), pace=RateKeeper(RATE_HZ), late=_STOP)
        ended = loop.run(instruction, max_steps=MAX_STEPS, on_step=kill).ended
    return LossPart(
        deadline_ms=deadline_ms,
        slowest_error_ms=max(timed.slowest_error_ms, last.slowest_error_ms),
        num_held=len(held),
        held_still=not any(action[:POSE_SIZE].any() for action in held),
        back_after_s=revival.back_after_s,
        num_reconnects=num_reconnects,
        num_wrong=_count_wrong(policy, instruction, after),
        stop_after_misses=STOP_AFTER_MISSES,
        ended=ended,
    )


_HOLD: Final = LatePolicy(action="hold")
_STOP: Final = LatePolicy(action="hold", stop_after_misses=STOP_AFTER_MISSES)


class _Revival:
    """Starts another server beside the loop, which must not wait for it."""

    def __init__(self, start: Callable[[], object]) -> None:
        self._start = start
        self._thread: threading.Thread | None = None
        self._started_s = 0.0
        self.back_after_s: float | None = None

    def start(self) -> None:
        self._started_s = time.monotonic()
        self._thread = threading.Thread(target=self._start)
        self._thread.start()

    def note_first_action(self) -> None:
        if self.back_after_s is None:
            self.back_after_s = time.monotonic() - self._started_s

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()


def _count_wrong(policy: EdgePolicy, instruction: str, steps: list[StepReport]) -> int:
    policy.reset(instruction)
    num_wrong = 0
    for step in steps:
        assert step.observation is not None
        expected: npt.NDArray[np.float32] = policy.act(step.observation).actions[0]
        num_wrong += not np.array_equal(expected, step.control.action)
    return num_wrong
