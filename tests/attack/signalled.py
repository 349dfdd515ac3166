"""Runs many control loops, one process each, sends each of them signals, and says how each ended, one JSON line a loop.

    python tests/attack/signalled.py NUM_LOOPS SEED

A process of its own that forks: libraries that other tests load change what a signal does to a process.
"""

import ctypes
import json
import os
import random
import select
import signal
import sys
import time

import numpy as np

from rfedge.runtimes.control import stopping
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ClosedLoop
from rfedge.runtimes.control.stopping import SIGNAL_STATUS, StopRequest, stop_on_signals
from tests.runtimes.loop_parts import FRAME, CountingPolicy

KINDS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR1")
# How a step passes: quickly, asleep in Python, or in a C function that no signal interrupts and where no handler runs.
STEPS = ("quick", "asleep", "in C")
_LIBC = ctypes.CDLL(None)


class PipeRobot:
    """Says through a pipe that it moves and that it was stopped."""

    def __init__(self, pipe: int, step: str) -> None:
        self.pipe, self.step, self.num_sent = pipe, step, 0

    def observe(self) -> object:
        if self.num_sent >= 3:
            if self.step == "asleep":
                time.sleep(60)
            elif self.step == "in C":
                mutex = ctypes.create_string_buffer(64)
                _LIBC.pthread_mutex_lock(mutex)
                _LIBC.pthread_mutex_lock(mutex)
            time.sleep(0.001)
        return FRAME

    def apply(self, action: np.ndarray) -> None:
        self.num_sent += 1
        if self.num_sent == 3:
            os.write(self.pipe, b"m")

    def stop(self) -> None:
        time.sleep(0.01)  # long enough for a signal to come in the middle
        os.write(self.pipe, b"s")


def drive(pipe: int, step: str) -> int:
    """Run one loop in this process and return the status that `rfedge run` would end with."""
    for name in KINDS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as rfedge.cli.app.main
    stopping._GRACE_S = 0.2
    request = StopRequest()
    with stop_on_signals(request, patience_s=0.3):
        ControlLoop(ClosedLoop(CountingPolicy()), PipeRobot(pipe, step), stop=request).run("go", max_steps=10**9)
    return SIGNAL_STATUS[request.reason or ""]


def attack(rng: random.Random, number: int) -> dict[str, object]:
    """Fork one loop, send one to three signals at random moments, and return what became of it."""
    read, write = os.pipe()
    step = STEPS[number // len(KINDS) % len(STEPS)]
    kinds = [KINDS[number % len(KINDS)], *rng.choices(KINDS, k=rng.randrange(3))]
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            os._exit(drive(write, step))
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException as error:
            os._exit(99 if not isinstance(error, KeyboardInterrupt) else 130)
    os.close(write)
    heard = os.read(read, 1)
    started_s = time.monotonic()
    for kind in kinds:
        time.sleep(rng.random() * 0.02)
        try:
            os.kill(child, getattr(signal, kind))
        except ProcessLookupError:
            break
    ends_s = time.monotonic() + 20
    while time.monotonic() < ends_s:
        if select.select([read], [], [], 0.5)[0]:
            if not (data := os.read(read, 64)):
                break
            heard += data
        else:
            os.kill(child, signal.SIGCONT)  # SIGTSTP after the run suspends, as ever
    os.close(read)
    if time.monotonic() >= ends_s:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return {
        "kinds": kinds,
        "step": step,
        "stops": heard.count(b"s"),
        "status": os.waitstatus_to_exitcode(status),
        "took_s": round(time.monotonic() - started_s, 3),
    }


if __name__ == "__main__":
    rng = random.Random(int(sys.argv[2]))
    for number in range(int(sys.argv[1])):
        print(json.dumps(attack(rng, number)), flush=True)
