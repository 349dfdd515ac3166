"""The process that stops a robot by itself: after silence, after SIGKILL, and not after a farewell."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.runtimes.control.heartbeat import Heartbeat, watch
from tests.errors import raises

ROOT = Path(__file__).parents[2]
# The arm of these tests: a file that gets one line per stop.
ARM = """
import os, sys
def connect():
    def stop():
        with open(os.environ["ARM_LOG"], "a") as log:
            log.write("stop\\n")
    return stop
def talkative():
    stop = connect()
    def say_and_stop():
        print("stopping", flush=True)
        print("stopping", file=sys.stderr, flush=True)
        stop()
    return say_and_stop
def broken():
    raise OSError("no arm")
"""
LOOP = """
import sys, time
from rfedge.runtimes.control.heartbeat import Heartbeat
heartbeat = Heartbeat(f"hostile_arm:{sys.argv[1]}", 30.0)
heartbeat.beat()
print("moving", flush=True)
time.sleep(60)
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "hostile_arm.py").write_text(ARM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ARM_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


def _num_stops(log: Path, expected: int) -> int:
    until_s = time.monotonic() + 20
    while (count := log.read_text().count("stop")) < expected and time.monotonic() < until_s:
        time.sleep(0.02)
    return count


def test_silence_stops_the_robot_once_and_a_farewell_does_not(log: Path) -> None:
    with Heartbeat("hostile_arm:connect", 0.2) as heartbeat:
        assert _num_stops(log, 0) == 0, "nothing has moved yet"
        for _ in range(5):
            heartbeat.beat()
            time.sleep(0.01)
        assert _num_stops(log, 1) == 1
        heartbeat.beat()
        assert _num_stops(log, 2) == 2, "it watches again from the next action on"
        heartbeat.beat()
    heartbeat.close()
    assert _num_stops(log, 2) == 2


@pytest.mark.parametrize("arm", ["connect", "talkative"])
def test_a_killed_loop_leaves_a_robot_that_rests(arm: str, log: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{log.parent}"}
    command, pipe = [sys.executable, "-c", LOOP, arm], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment) as loop:
        loop.stderr.close()  # as a terminal that is gone
        assert loop.stdout.readline() == b"moving\n"
        loop.send_signal(signal.SIGKILL)
        assert _num_stops(log, 1) == 1


def test_a_heartbeat_that_cannot_stop_the_robot_is_an_error(log: Path) -> None:
    with raises(BackendUnavailableError, "heartbeat process", got="no connection"):
        Heartbeat("hostile_arm:broken", 1.0)
    with raises(ConfigError, "heartbeat", got="inf", expected="a positive number of seconds"):
        Heartbeat("hostile_arm:connect", float("inf"))
    with Heartbeat("hostile_arm:connect", 9.0) as heartbeat:
        heartbeat._process.kill()
        heartbeat._process.wait()
        with raises(BackendUnavailableError, "heartbeat process", got="it ended"):
            heartbeat.beat()


def test_the_watch_itself() -> None:
    stops: list[float] = []
    read, write = os.pipe()
    os.write(write, b"+++")
    os.close(write)
    watch(lambda: stops.append(time.monotonic()), 60.0, pipe=read)
    os.close(read)
    assert len(stops) == 1, "the pipe ended without a farewell"
