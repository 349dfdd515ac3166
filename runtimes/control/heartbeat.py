"""A process of its own that stops a robot when no action came for too long: also when the loop's process is killed.

    python -m rfedge.runtimes.control.heartbeat MODULE:FUNCTION SECONDS

reads beats from its standard input, as `Heartbeat` sends them. FUNCTION takes nothing, opens a connection of its own to the
robot and returns what stops it: zero motion, gripper as it is.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from rfedge.errors import BackendUnavailableError, ConfigError

__all__ = ["Heartbeat", "watch"]

_BEAT: Final = b"+"
_FAREWELL: Final = b"-"
_CONNECTING_S, _CLOSING_S = 30.0, 5.0
_ATTEMPTS: Final = 3
# Ctrl-C and a lost terminal reach every process of the group; this one outlives the loop's.
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


class Heartbeat(contextlib.AbstractContextManager["Heartbeat"]):
    """The loop's side; use it as a context manager or call `close`.

    Args:
        connect: "module:function", see this module.
        within_s: the robot is stopped when no beat came for so long; counted from the first beat on.

    Raises:
        ConfigError: `within_s` is not a positive number.
        BackendUnavailableError: the process did not connect; its error stands on stderr.
    """

    def __init__(self, connect: str, within_s: float) -> None:
        if not (math.isfinite(within_s) and within_s > 0):
            raise ConfigError("heartbeat", got=within_s, expected="a positive number of seconds", remedy="Raise it.")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, connect, repr(within_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        readable, _, _ = select.select([self._process.stdout], [], [], _CONNECTING_S)
        if not readable or not self._process.stdout.readline():
            self._process.kill()
            self.close()
            raise self._gone("no connection")

    def __exit__(self, *error: object) -> None:
        self.close()

    def beat(self) -> None:
        """Say that an action was sent; call it in `Robot.apply`. BackendUnavailableError: nobody would stop the robot."""
        try:
            os.write(self._pipe, _BEAT)
        except BlockingIOError:
            pass  # 64 KiB of beats wait there already
        except OSError:
            raise self._gone("it ended") from None

    def close(self) -> None:
        """Let the process end without another stop; a second call does nothing."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        with contextlib.suppress(OSError):
            os.write(self._pipe, _FAREWELL)
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            self._process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self, got: str) -> BackendUnavailableError:
        remedy = "See its error above."
        return BackendUnavailableError("heartbeat process", got=got, expected="one that can stop the robot", remedy=remedy)


def watch(stop: Callable[[], None], within_s: float, *, pipe: int) -> None:
    """Call `stop` whenever `pipe` was silent for `within_s` after a beat, and when it ends without a farewell."""
    timeout_s: float | None = None  # before the first beat nothing moves
    while True:
        readable, _, _ = select.select([pipe], [], [], timeout_s)
        beats = os.read(pipe, 1 << 16) if readable else b""
        if beats.endswith(_FAREWELL):
            return
        if not beats:
            _stop(stop)
            if readable:
                return
        timeout_s = within_s if beats else None


def _stop(stop: Callable[[], None]) -> None:
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(Exception):
            stop()
            return
        _silence(2)  # it may have been a warning to a terminal that is gone
    stop()


def _silence(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _main(connect: str, within_s: str) -> None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    module, _, function = connect.partition(":")
    stop = getattr(importlib.import_module(module), function)()
    print("ready", flush=True)  # noqa: T201 - to the loop's process
    _silence(1)  # nobody reads more, and with that process gone a `stop` that prints would fail
    watch(stop, float(within_s), pipe=sys.stdin.fileno())


if __name__ == "__main__":
    _main(*sys.argv[1:])
