"""Ends a run from outside: a signal or another thread asks, the loop obeys between two steps, or the robot is stopped first.

Signals are read by a thread of their own, because a handler in Python waits for the main thread, which may wait for a hung
policy. Nothing is raised into the loop: an exception could come in the middle of `Robot.stop`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

__all__ = ["SIGNAL_STATUS", "StopRequest", "stop_on_signals"]

# Those that end or freeze a process, and that a process may take: the terminal's keys and its loss, kill's, a power
# supply's, those of a limit on time. Of the rest, SIGKILL and SIGSTOP cannot be taken, and after a fault nothing is safe.
_SIGNALS: Final = tuple(
    name
    for name in (
        *("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGABRT"),
        *("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGIO", "SIGPWR", "SIGSTKFLT", "SIGRTMIN", "SIGRTMAX"),
    )
    if hasattr(signal, name)
)
# Ignored: in the background a terminal freezes who writes to it or reads from it.
_FREEZING: Final = tuple(name for name in ("SIGTTIN", "SIGTTOU") if hasattr(signal, name))
# Taken whoever ignores or uses them: a shell without job control lets what it starts with & ignore Ctrl-C.
_ALWAYS: Final = ("SIGINT", "SIGTERM", "SIGQUIT")
# What a shell reports for a process that a signal ended.
SIGNAL_STATUS: Final = {name: 128 + getattr(signal, name) for name in _SIGNALS}
# A step under way has so long to end after the first signal; after a second one, or then, the robot is stopped beside it.
_PATIENCE_S: Final = 5.0
# And so long once the robot rests, until the process ends without it; longer where nobody asked for the end.
_GRACE_S: Final = 2.0
_HUNG_GRACE_S: Final = 10.0
# And so long for `Robot.stop` itself.
_STOP_S: Final = 10.0
# And so long for the last words, to a terminal that Ctrl-S stopped or a pipe that nobody reads.
_WORDS_S: Final = 1.0
_BLOCK_ENDED: Final = 0  # no signals have these numbers
_STEP_HANGS: Final = 255
_STOP_HANGS: Final = 254
_HANDLED: Final = 253
_HUNG_STATUS: Final = 1
_NO_HANDLER: Final = (signal.SIG_DFL, signal.SIG_IGN, None)


class StopRequest:
    """A wish that the loop looks at before every step.

    Attributes:
        reason: None until somebody asked; then the first reason given.
        is_heard: whether a loop has begun that looks at it.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.is_heard = False
        self._rest: Callable[[str], None] | None = None
        self._report: Callable[[int], object] | None = None
        self._ended = threading.Event()
        self._ended.set()

    @property
    def is_running(self) -> bool:
        """Whether a loop drives a robot now."""
        return not self._ended.is_set()

    def ask(self, reason: str) -> None:
        """End the run before its next step."""
        self.reason = self.reason or reason

    def insist(self, reason: str) -> None:
        """End the run, and stop its robot now: the step under way may hang."""
        self.ask(reason)
        if (rest := self._rest) is not None:
            rest(reason)

    @contextmanager
    def step_hangs(self) -> Iterator[None]:
        """Stop a loop's robot in the block, in the middle of a step: a step or stop that never returns keeps the process."""
        timer = threading.Timer(_STOP_S, self._say, (_STOP_HANGS,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._say(_STEP_HANGS)

    def _say(self, what: int) -> None:
        if (report := self._report) is not None:
            report(what)

    @contextmanager
    def reporting_to(self, report: Callable[[int], object]) -> Iterator[None]:
        """Call `report` inside the block when a step or a stop hangs."""
        self._report = report
        try:
            yield
        finally:
            self._report = None

    def wait(self, timeout_s: float) -> bool:
        """Wait for the loop under way to end, and say whether it has."""
        return self._ended.wait(timeout_s)

    @contextmanager
    def heard_by(self, rest: Callable[[str], None]) -> Iterator[None]:
        """Let a loop hear this request inside the block; `rest` stops its robot from any thread."""
        self._ended.clear()
        self._rest, self.is_heard = rest, True
        try:
            yield
        finally:
            self._rest = None
            self._ended.set()


@contextmanager
def stop_on_signals(request: StopRequest, *, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Turn signals inside the block into requests; while a loop runs none of them ends the process before `Robot.stop`.

    The first asks. The second, or the end of `patience_s`, stops the robot beside the step under way; if that step has not
    ended two seconds later, the process ends without it. So it does, with status 1, ten seconds after a watchdog stopped the
    robot in a step that hangs. A `Robot.stop` that hangs has ten seconds too. While no loop has begun, and from the second
    signal on when none is running, a signal acts as it did before: what is being loaded or written need not be waited for.
    If it is lost there, as in a callback that swallows every exception, no loop begins; if no handler gets a turn, because a
    library hangs, the process ends after `patience_s`.

    An ignored SIGHUP stays ignored: a run under nohup survives its terminal. Ctrl-C, SIGTERM and SIGQUIT are taken all the
    same: a shell's & makes a script's commands ignore them. Outside the main thread, where Python allows no handlers,
    nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _signal_pipe() as pipe:
        handlers = _Handlers(request, lambda: _write(pipe[1], _HANDLED))
        arguments = (request, pipe, handlers.taken, patience_s)
        watcher = threading.Thread(target=_watch, args=arguments, name="rfedge-signals", daemon=True)
        watcher.start()
        handlers.install()
        try:
            with request.reporting_to(lambda what: _write(pipe[1], what)):
                yield
        finally:
            handlers.restore()
            while not _write(pipe[1], _BLOCK_ENDED):  # full of signals that the watcher has yet to read
                time.sleep(0.01)
            watcher.join()


class _Handlers:
    """Handler in the main thread when it is free; while a loop runs the watching thread decides."""

    def __init__(self, request: StopRequest, report: Callable[[], object]) -> None:
        self._request = request
        self._report = report
        self._num_seen = 0
        self._before: dict[int, Any] = {}
        self._ignored: list[int] = []
        for name in _SIGNALS:
            number = getattr(signal, name)
            handler = signal.getsignal(number)
            # Of the others, one that has a handler already is somebody else's.
            if handler == signal.SIG_DFL or name in _ALWAYS:
                self._before[number] = handler

    @property
    def taken(self) -> Collection[int]:
        return self._before.keys()

    def install(self) -> None:
        self._ignored = [number for name in _FREEZING if signal.getsignal(number := getattr(signal, name)) == signal.SIG_DFL]
        for number in self._ignored:
            signal.signal(number, signal.SIG_IGN)
        for number in self._before:
            signal.signal(number, self._handle)

    def restore(self) -> None:
        for number in self._ignored:
            signal.signal(number, signal.SIG_DFL)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._report()
        request = self._request
        self._num_seen += 1
        if request.is_heard:
            request.ask(signal.Signals(number).name)
            if request.is_running or self._num_seen == 1:
                return
        self._act_as_before(number, frame)

    def _act_as_before(self, number: int, frame: FrameType | None) -> None:
        handler = self._before[number]
        if number == signal.SIGINT and handler in _NO_HANDLER:
            handler = signal.default_int_handler
        if handler not in _NO_HANDLER:
            try:
                handler(number, frame)
            except BaseException:
                self._request.ask(signal.Signals(number).name)  # in case somebody swallows it
                raise
            return
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._handle)  # it was SIGTSTP, and the process goes on


@contextmanager
def _signal_pipe() -> Iterator[tuple[int, int]]:
    """Yield a pipe that gets the number of every signal that has a handler in Python, whatever the main thread does."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    before = signal.set_wakeup_fd(ends[1], warn_on_full_buffer=False)
    try:
        yield ends
    finally:
        signal.set_wakeup_fd(before)
        for end in ends:
            os.close(end)


def _watch(request: StopRequest, pipe: tuple[int, int], taken: Collection[int], patience_s: float) -> None:
    name: str | None = None  # of the first signal that is not over
    num_signals, is_handled, until_s = 0, True, 0.0
    while True:
        waits = name is not None and (request.is_running or not is_handled)
        timeout_s = max(0.0, until_s - time.monotonic()) if waits else None
        readable, _, _ = select.select([pipe[0]], [], [], timeout_s)
        num_before, was_handled = num_signals, is_handled
        for number in os.read(pipe[0], 512) if readable else b"":
            if number == _BLOCK_ENDED:
                return
            if number in taken:
                name = name or signal.Signals(number).name
                num_signals, is_handled = num_signals + 1, False
            elif number == _HANDLED:
                is_handled = True
            elif number == _STOP_HANGS:
                _exit("a step beyond its deadline", _HUNG_STATUS, _STOP_ALSO)
            elif number == _STEP_HANGS and not request.wait(_HUNG_GRACE_S):
                _exit("a step beyond its deadline", _HUNG_STATUS, _STOPPED)
        if name is None or (is_handled and not request.is_running):
            name, num_signals = None, 0
            continue  # the handlers have decided
        if num_before == 0 or (was_handled and not request.is_running):
            until_s = time.monotonic() + patience_s
        if not request.is_running:
            if time.monotonic() >= until_s:
                _exit(name, SIGNAL_STATUS[name], _NO_LOOP)
            continue
        request.ask(name)
        if (readable and num_signals == num_before) or (num_signals == 1 and time.monotonic() < until_s):
            continue
        rest = threading.Thread(target=request.insist, args=(name,), name="rfedge-rest", daemon=True)
        rest.start()
        rest.join(_STOP_S)
        if not request.wait(_GRACE_S):
            _exit(name, SIGNAL_STATUS[name], _STOP_ALSO if rest.is_alive() else _STOPPED)
        until_s = time.monotonic() + patience_s


def _write(pipe: int, number: int) -> bool:
    """Write, and say whether there was room."""
    try:
        os.write(pipe, bytes([number]))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


_STOPPED: Final = "the robot was stopped; the step under way did not end"
_STOP_ALSO: Final = "Robot.stop was called and did not return"
_NO_LOOP: Final = "no loop has begun; what was under way did not end"


def _exit(reason: str, status: int, what: str) -> None:
    speaker = threading.Thread(target=_say, args=(f"rfedge: {reason}: {what}\n",), daemon=True)
    speaker.start()
    speaker.join(_WORDS_S)
    os._exit(status)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        sys.stderr.write(text)
        sys.stderr.flush()
