"""The client: the same actions as the policy itself, never longer than its deadline, and back after a loss."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from websockets.asyncio.server import serve

from rfedge.benchmarks.latency.serving_process import ServingProcess
from rfedge.errors import ConfigError, ContractError, PolicyUnavailableError, RfedgeError
from rfedge.messages import Observation
from rfedge.runtimes import STAGES, ClosedLoop, EdgePolicy, RuntimeSettings
from rfedge.runtimes.control.limits import LatePolicy
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.server.client import RemotePolicy
from rfedge.runtimes.server.wire import pack
from tests.errors import raises
from tests.runtimes.handmade_bundle import INSTRUCTIONS, tiny_config, write_handmade_bundle
from tests.runtimes.server.running_server import GatedPolicy, frame, running

TOKEN = "0123456789abcdef0123456789abcdef"


def solo(bundle: Path, instruction: str, seeds: list[int]) -> list[np.ndarray]:
    with EdgePolicy.load(bundle, settings=RuntimeSettings(threads=1)) as policy:
        policy.reset(instruction)
        return [policy.act(frame(seed)).actions for seed in seeds]


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def test_it_takes_the_place_of_the_policy(policy: GatedPolicy, bundle: Path) -> None:
    with running(policy) as (_, url), RemotePolicy(url) as remote:
        assert (remote.chunk_size, remote.frame_stride, remote.metadata["policy"]) == (4, 1, "tiny")
        with raises(ContractError, "policy", got="act() without an instruction"):
            remote.act(frame())
        for instruction in INSTRUCTIONS[:2]:
            remote.reset(instruction)
            for seed, expected in enumerate(solo(bundle, instruction, list(range(14)))):
                step = remote.act(frame(seed))
                np.testing.assert_array_equal(step.actions, expected)
                assert step.actions.flags.writeable
                assert set(step.timings_ms) == set(STAGES)
                assert step.timings_ms["total"] > step.timings_ms["backbone"] > 0
        assert remote.num_reconnects == 0


def test_what_the_server_refuses_is_the_same_error_as_of_the_policy(policy: GatedPolicy) -> None:
    with running(policy) as (_, url), RemotePolicy(url) as remote:
        remote.reset(INSTRUCTIONS[0])
        with raises(ContractError, "instruction: got no words..."):
            remote.reset("")
        with raises(ContractError, "instruction: got 600 characters..."):
            remote.reset("x" * 600)
        with raises(ContractError, "observation.images.static", got="shape (2, 2, 3)"):
            remote.act(Observation(static=np.zeros((2, 2, 3), np.uint8), gripper=frame().gripper))
        assert len(remote.act(frame()).actions) == 4  # the instruction before still holds


_LEAN_CLIENT = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {"rfedge", "numpy", "msgpack", "websockets"} | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"not on this robot: {name}", name=name)
sys.meta_path.insert(0, Refuse())
import numpy as np
from rfedge.messages import Observation
from rfedge.runtimes.server.client import RemotePolicy
with RemotePolicy(sys.argv[1]) as policy:
    policy.reset("push the button")
    print(policy.act(Observation(np.zeros((200, 200, 3), np.uint8), np.zeros((84, 84, 3), np.uint8))).actions.shape)
"""


def test_it_needs_numpy_msgpack_and_websockets_alone(policy: GatedPolicy) -> None:
    with running(policy) as (_, url):
        result = subprocess.run([sys.executable, "-c", _LEAN_CLIENT, url], capture_output=True, text=True, timeout=60)
    assert (result.stdout.strip(), result.stderr) == ("(4, 7)", "")


def test_a_late_answer_is_an_error_in_time_and_never_the_answer_to_another_frame(policy: GatedPolicy, bundle: Path) -> None:
    expected = solo(bundle, INSTRUCTIONS[0], [0, 1, 2])
    with running(policy) as (_, url), RemotePolicy(url, deadline_ms=500) as remote:
        remote.reset(INSTRUCTIONS[0])
        np.testing.assert_array_equal(remote.act(frame(0)).actions, expected[0])
        policy.gate.clear()
        started_s = time.monotonic()
        with raises(PolicyUnavailableError, got="no answer in 500 ms", expected="an answer in time"):
            remote.act(frame(1))
        assert 0.5 <= time.monotonic() - started_s < 1.0
        policy.gate.set()
        # The frame was seen all the same, so the next one continues after it.
        np.testing.assert_array_equal(remote.act(frame(2)).actions, expected[2])
        assert remote.num_reconnects == 0


def test_frames_do_not_pile_up_at_a_server_that_hangs(policy: GatedPolicy) -> None:
    with running(policy) as (_, url), RemotePolicy(url, deadline_ms=250) as remote:
        remote.reset(INSTRUCTIONS[0])
        policy.gate.clear()
        for _ in range(2):
            with raises(PolicyUnavailableError, got="no answer in 250 ms"):
                remote.act(frame())
        for _ in range(3):
            with raises(PolicyUnavailableError, got="2 earlier requests without an answer"):
                remote.act(frame())
        policy.gate.set()
        _until_it_acts(remote)
    assert policy.num_calls <= 4


def test_after_a_loss_it_connects_again_and_its_memory_begins_anew(
    policy: GatedPolicy, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = solo(bundle, INSTRUCTIONS[0], [0, 1])
    with running(policy) as (_, url):
        remote = RemotePolicy(url, deadline_ms=2000)
        remote.reset(INSTRUCTIONS[0])
        np.testing.assert_array_equal(remote.act(frame(0)).actions, expected[0])
    with remote:
        started_s = time.monotonic()
        for _ in range(3):
            with raises(PolicyUnavailableError, f"server {url}"):
                remote.act(frame(1))
        assert time.monotonic() - started_s < 1.5  # told at once, not after the deadline
        with running(policy, port=port_of(url)):
            _until_it_acts(remote, seed=0)
            assert remote.num_reconnects == 1
            np.testing.assert_array_equal(remote.act(frame(1)).actions, expected[1])
    assert "the policy's memory begins anew" in caplog.text


@pytest.mark.parametrize(
    ("chunk_size", "seed", "got", "expected"),
    [(2, 0, "...'chunk_size': 2...", "...'chunk_size': 4..., as before"), (4, 1, "...manifest_sha256...", "..., as before")],
)
def test_another_policy_behind_the_same_address_ends_the_run(
    policy: GatedPolicy, tmp_path: Path, chunk_size: int, seed: int, got: str, expected: str
) -> None:
    write_handmade_bundle(tmp_path / "b", tiny_config(chunk_size=chunk_size), seed=seed)
    with running(policy) as (_, url):
        remote = RemotePolicy(url)
        remote.reset(INSTRUCTIONS[0])
    with remote, EdgePolicy.load(tmp_path / "b") as other, running(other, port=port_of(url)):
        with raises(ContractError, got=got, expected=expected):
            _until_it_acts(remote)
        with raises(ContractError, expected="...as before"):
            remote.act(frame())  # for good


def test_a_loop_holds_while_the_server_is_gone_and_goes_on_when_it_is_back(policy: GatedPolicy) -> None:
    robot, steps = StillRobot(), []

    def run(remote: RemotePolicy, late: LatePolicy, on_step: object = None) -> str:
        loop = ControlLoop(ClosedLoop(remote), robot, late=late)
        return loop.run(INSTRUCTIONS[0], max_steps=400, success=lambda: len(steps) > 3, on_step=on_step).ended  # type: ignore[arg-type]

    with running(policy) as (_, url):
        remote = RemotePolicy(url, deadline_ms=2000)
        remote.reset(INSTRUCTIONS[0])
    with remote:
        assert run(remote, LatePolicy(action="hold", stop_after_misses=5)) == "misses"
        assert len(robot.sent) == 5
        assert all(not action[:6].any() for action in robot.sent)  # zero motion
        assert robot.num_stops == 1
        with running(policy, port=port_of(url)):

            def gather(step: ControlStep) -> None:
                time.sleep(0.01)
                if step.missing is None:
                    steps.append(step)

            assert run(remote, LatePolicy(action="hold"), gather) == "success"


class StillRobot:
    """Sees one frame for ever and remembers what it was told."""

    control_hz = 30.0

    def __init__(self) -> None:
        self.sent: list[np.ndarray] = []
        self.num_stops = 0

    def observe(self) -> Observation:
        return frame()

    def apply(self, action: np.ndarray) -> None:
        self.sent.append(action)

    def stop(self) -> None:
        self.num_stops += 1


def test_a_server_process_that_is_killed_or_stopped_never_holds_the_caller(bundle: Path) -> None:
    with ServingProcess(bundle) as server, RemotePolicy(server.url, deadline_ms=500) as remote:
        remote.reset(INSTRUCTIONS[0])
        remote.act(frame())
        os.kill(server.process.pid, signal.SIGSTOP)  # alive for the kernel, dead for everyone else
        try:
            for _ in range(4):
                _assert_unavailable_within(remote, 1.0)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        _until_it_acts(remote)
        os.kill(server.process.pid, signal.SIGKILL)
        for _ in range(4):
            _assert_unavailable_within(remote, 1.0)


def test_refusals_at_the_door_are_errors_of_the_user(policy: GatedPolicy) -> None:
    with running(policy, token=TOKEN) as (_, url):
        with raises(ConfigError, got="HTTP 401: send the header Authorization: Bearer TOKEN", expected="to be let in"):
            RemotePolicy(url, token="another token, wrong")
        with raises(ConfigError, got="HTTP 404..."):
            RemotePolicy(f"{url}/policy", token=TOKEN)
        with RemotePolicy(url, token=TOKEN) as remote:
            remote.reset(INSTRUCTIONS[0])
            assert remote.act(frame()).actions.shape == (4, 7)
    for wrong in ("http://127.0.0.1:8000", "127.0.0.1:8000", "", "ws://"):
        with raises(ConfigError, "server", expected="ws://HOST:PORT or wss://HOST:PORT"):
            RemotePolicy(wrong)


def test_nobody_there_is_said_after_the_connection_timeout() -> None:
    with raises(PolicyUnavailableError, got="...Connect call failed...", remedy="Start it with `rfedge serve`..."):
        RemotePolicy("ws://127.0.0.1:9", connect_timeout_s=0.2)


def test_a_token_in_the_clear_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PolicyUnavailableError):
        RemotePolicy("ws://192.0.2.1:9", token=TOKEN, connect_timeout_s=0.05)  # a network for documentation: nobody is there
    assert "the token goes to 192.0.2.1 in the clear: use wss" in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("greeting", "answers", "error", "subject", "got"),
    [
        ({}, [], ContractError, "server ...", "metadata with keys []"),
        ({"server": "rfedge", "protocol": 2}, [], ContractError, "server ...", "metadata with keys ['protocol', 'server']"),
        ({"server": "rfedge", "protocol": 1, "chunk_size": 0, "frame_stride": 1}, [], ContractError, None, "metadata ..."),
        (b"\xc1", [], ContractError, "message", "FormatError"),
        (None, [{"actions": np.zeros((1, 7), np.float32)}], ContractError, "actions of the server", "shape (1, 7)"),
        (None, [{"actions": "none"}], ContractError, "actions of the server", "a str"),
        (None, [{"actions": np.full((2, 7), 9, np.float32)}], ContractError, "action", "pose up to 9.000"),
        (None, [{"actions": np.full((2, 7), np.nan, np.float32)}], ContractError, "action", "NaN or Inf"),
        (None, ["Traceback of another server"], PolicyUnavailableError, None, "internal: Traceback of another server"),
    ],
)
def test_a_server_that_misbehaves_moves_nothing(
    greeting: dict | bytes | None, answers: list, error: type[RfedgeError], subject: str | None, got: str
) -> None:
    good = {"server": "rfedge", "protocol": 1, "chunk_size": 2, "frame_stride": 1}
    with (
        _scripted(good if greeting is None else greeting, [{"reset": True}, *answers]) as url,
        raises(error, subject, got=got),
        RemotePolicy(url, deadline_ms=2000) as remote,
    ):
        remote.reset("go")
        remote.act(frame())


@contextmanager
def _scripted(greeting: dict | bytes, answers: list) -> Iterator[str]:
    """A server that says what a test wrote down."""
    urls: list[str] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    ended = loop.create_future()

    async def handle(connection) -> None:
        await connection.send(greeting if isinstance(greeting, bytes) else pack(greeting))
        for answer in answers:
            await connection.recv()
            await connection.send(answer if isinstance(answer, str) else pack(answer))
        await connection.wait_closed()

    async def run() -> None:
        async with serve(handle, "127.0.0.1", 0, compression=None) as server:
            urls.append(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            ready.set()
            await ended

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert ready.wait(5)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(ended.set_result, None)
        thread.join(10)
        loop.close()


def _until_it_acts(remote: RemotePolicy, seed: int = 0) -> None:
    deadline_s = time.monotonic() + 10
    while not _acts(remote, seed):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def _acts(remote: RemotePolicy, seed: int) -> bool:
    try:
        remote.act(frame(seed))
    except PolicyUnavailableError:
        return False
    return True


def _assert_unavailable_within(remote: RemotePolicy, limit_s: float) -> None:
    started_s = time.monotonic()
    with pytest.raises(PolicyUnavailableError):
        remote.act(frame())
    assert time.monotonic() - started_s < limit_s
