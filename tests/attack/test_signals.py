"""Signals of six kinds, one to three of them at random moments, into loops that step, sleep or hang in C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rfedge.runtimes.control.stopping import SIGNAL_STATUS

pytestmark = pytest.mark.attack
ROOT = Path(__file__).parents[2]


def _attack(num_loops: int, seed: int) -> list[dict[str, object]]:
    command = [sys.executable, str(ROOT / "tests" / "attack" / "signalled.py"), str(num_loops), str(seed)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def _check(loops: list[dict[str, object]]) -> None:
    assert [loop for loop in loops if not loop["stops"]] == []
    for loop in loops:
        kinds = loop["kinds"]
        assert isinstance(kinds, list)
        # Of several that come before Python looks, any is the first; one that comes after the run acts as ever.
        numbers = [SIGNAL_STATUS[kind] - 128 for kind in kinds]
        assert loop["status"] in [128 + number for number in numbers] + [-number for number in numbers[1:]], loop


def test_every_signal_ends_in_stop() -> None:
    loops = _attack(18, seed=0)
    assert len(loops) == 18
    _check(loops)


@pytest.mark.slow
def test_200_random_signals_of_6_kinds_end_in_stop() -> None:
    loops = _attack(200, seed=1)
    assert len(loops) == 200
    assert {kind for loop in loops for kind in loop["kinds"]} >= {"SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP"}  # type: ignore[attr-defined]
    _check(loops)


HUNG = """
import time
from rfedge.runtimes.control import stopping
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ClosedLoop
from rfedge.runtimes.control.stopping import StopRequest, stop_on_signals
from tests.runtimes.loop_parts import CountingPolicy, Robot

class Hung(Robot):
    def observe(self):
        if self.actions:
            time.sleep(600)
        return super().observe()
    def stop(self):
        print("stopped", flush=True)

stopping._HUNG_GRACE_S = 0.2
stop = StopRequest()
with stop_on_signals(stop):
    ControlLoop(ClosedLoop(CountingPolicy()), Hung(), step_deadline_s=0.1, stop=stop).run("go", max_steps=9)
"""


def test_a_step_that_never_returns_does_not_keep_the_process() -> None:
    result = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert (result.returncode, result.stdout) == (1, "stopped\n")
    assert result.stderr == "rfedge: a step beyond its deadline: the robot was stopped; the step under way did not end\n"


NOHUP = """
import os, signal
from rfedge.runtimes.control.stopping import StopRequest, stop_on_signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
used = []
signal.signal(signal.SIGUSR1, lambda *_: used.append(1))
request = StopRequest()
with stop_on_signals(request), request.heard_by(lambda reason: None):
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGUSR1)
assert (request.reason, used) == (None, [1])
assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
"""


def test_what_is_ignored_or_used_already_is_left_alone() -> None:
    result = subprocess.run([sys.executable, "-c", NOHUP], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr


# What a shell without job control does to the commands that it starts with &.
IGNORED = """
import os, signal, sys, time
number = getattr(signal, sys.argv[1])
signal.signal(number, signal.SIG_IGN)
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ClosedLoop
from rfedge.runtimes.control.stopping import StopRequest, stop_on_signals
from tests.runtimes.loop_parts import CountingPolicy, Robot

robot, request = Robot(), StopRequest()
with stop_on_signals(request):
    loop = ControlLoop(ClosedLoop(CountingPolicy()), robot, stop=request)
    summary = loop.run("go", max_steps=9, on_step=lambda step: os.kill(os.getpid(), number))
assert (summary.ended, summary.num_steps, robot.num_stops) == (sys.argv[1], 1, 1)
assert signal.getsignal(number) == signal.SIG_IGN
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGQUIT"])
def test_a_run_in_the_background_of_a_script_ends_with_ctrl_c(name: str) -> None:
    result = subprocess.run([sys.executable, "-c", IGNORED, name], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr


SWALLOWED = """
import os, signal, sys
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ClosedLoop
from rfedge.runtimes.control.stopping import StopRequest, stop_on_signals
from tests.runtimes.loop_parts import CountingPolicy, Robot

class Library:
    def __del__(self):  # Python prints what is raised here, and goes on
        os.kill(os.getpid(), signal.SIGINT)

robot, request = Robot(), StopRequest()
with stop_on_signals(request):
    Library()
    summary = ControlLoop(ClosedLoop(CountingPolicy()), robot, stop=request).run("go", max_steps=9)
assert (summary.ended, len(robot.actions), robot.num_stops) == ("SIGINT", 0, 1)
"""


def test_no_loop_begins_after_an_interrupt_that_was_swallowed() -> None:
    result = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "KeyboardInterrupt" in result.stderr


HANGS = """
import ctypes, os, signal, sys, threading, time
from rfedge.runtimes.control import stopping
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ClosedLoop
from rfedge.runtimes.control.stopping import StopRequest, stop_on_signals
from tests.runtimes.loop_parts import CountingPolicy, Robot

if "deaf" in sys.argv:  # a terminal that Ctrl-S stopped, a pipe that nobody reads
    unread, full = os.pipe()
    os.set_blocking(full, False)
    while True:
        try:
            os.write(full, bytes(1024))
        except BlockingIOError:
            break
    os.set_blocking(full, True)
    os.dup2(full, 2)
mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
where, number = sys.argv[1], getattr(signal, sys.argv[2]) if len(sys.argv) > 2 else None

def hang():
    print("hangs", flush=True)
    if number is not None:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

class Hung(Robot):
    def observe(self):
        if where == "step":
            time.sleep(600)
        return super().observe()
    def stop(self):
        hang()

stopping._STOP_S = stopping._GRACE_S = 0.2
request = StopRequest()
with stop_on_signals(request, patience_s=0.3):
    if where == "load":
        hang()
    deadline_s = 0.1 if where == "step" else None
    ControlLoop(ClosedLoop(CountingPolicy()), Hung(), step_deadline_s=deadline_s, stop=request).run("go", max_steps=3)
"""


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("load", "SIGINT"), 130, "SIGINT: no loop has begun; what was under way did not end"),
        (("load", "SIGTERM"), 143, "SIGTERM: no loop has begun; what was under way did not end"),
        (("stop", "SIGINT"), 130, "SIGINT: Robot.stop was called and did not return"),
        (("stop", "SIGHUP"), 129, "SIGHUP: Robot.stop was called and did not return"),
        (("step",), 1, "a step beyond its deadline: Robot.stop was called and did not return"),
        (("stop", "SIGTERM", "deaf"), 143, None),
    ],
)
def test_a_library_or_a_stop_that_hangs_does_not_keep_the_process(
    words: tuple[str, ...], status: int, text: str | None
) -> None:
    command = [sys.executable, "-c", HANGS, *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=100)
    assert (result.returncode, result.stdout) == (status, "hangs\n")
    assert result.stderr == ("" if text is None else f"rfedge: {text}\n")


FROZEN = """
import os, signal, sys
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ClosedLoop
from rfedge.runtimes.control.stopping import StopRequest, stop_on_signals
from tests.runtimes.loop_parts import CountingPolicy, Robot

robot, request = Robot(), StopRequest()
with stop_on_signals(request):
    loop = ControlLoop(ClosedLoop(CountingPolicy()), robot, stop=request)
    numbers = (signal.SIGTTOU, signal.SIGTTIN)
    loop.run("go", max_steps=4, on_step=lambda step: os.kill(os.getpid(), numbers[step.index % 2]))
assert (request.reason, len(robot.actions)) == (None, 4)
assert signal.getsignal(signal.SIGTTOU) == signal.SIG_DFL
"""


def test_a_terminal_does_not_freeze_a_loop_in_the_background() -> None:
    result = subprocess.run(
        [sys.executable, "-c", FROZEN], capture_output=True, text=True, check=False, cwd=ROOT, timeout=100
    )
    assert result.returncode == 0, result.stderr


def test_every_signal_has_its_status() -> None:
    assert SIGNAL_STATUS["SIGHUP"] == 128 + signal.SIGHUP
    assert (SIGNAL_STATUS["SIGINT"], SIGNAL_STATUS["SIGTERM"]) == (130, 143)
