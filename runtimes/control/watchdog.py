"""Sees that a part of a control step takes too long while it is still running, and stops the robot from another thread.

The loop's own thread waits for the robot and the policy, so it cannot notice that one of them hangs. A second thread can;
it sleeps until the nearest deadline and costs nothing on a step that ends in time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rfedge.errors import ConfigError
from rfedge.runtimes.control.clock import Clock, MonotonicClock

__all__ = ["Watchdog"]


class Watchdog:
    """Calls `on_expired` once, in another thread, when a watched part is not over in time.

    After that `expired` names the part, or the reason of `expire`, and whoever watched must send the robot nothing more.
    What `on_expired` raises is raised again from `watching`. Use it as a context manager; without one only `check` looks.

    Raises:
        ConfigError: a deadline is not a positive number.
    """

    def __init__(
        self, deadlines_s: Mapping[str, float | None], on_expired: Callable[[], None], clock: Clock | None = None
    ) -> None:
        for part, deadline_s in deadlines_s.items():
            if deadline_s is not None and not deadline_s > 0:
                remedy = "Raise it."
                raise ConfigError(f"{part} deadline", got=deadline_s, expected="a positive number of seconds", remedy=remedy)
        self._deadlines_s = {
            part: deadline_s
            for part, deadline_s in deadlines_s.items()
            if deadline_s is not None and math.isfinite(deadline_s)
        }
        self._on_expired = on_expired
        self._clock = clock or MonotonicClock()
        self._lock = threading.Lock()
        self._due_s: dict[str, tuple[float, float]] = {}  # part -> when it is overdue, and its deadline
        self._error: Exception | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.expired: str | None = None

    def __enter__(self) -> Watchdog:
        if self._deadlines_s:  # with nothing to watch there is no thread
            self._thread = threading.Thread(target=self._run, name="rfedge-watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def watching(self, part: str, *, at_least_s: float = 0.0) -> Iterator[None]:
        """Watch what runs inside the block, if `part` has a deadline; `at_least_s` is a longer one for this time."""
        if part in self._deadlines_s:
            deadline_s = max(self._deadlines_s[part], at_least_s)
            with self._lock:
                self._due_s[part] = (self._clock.now_s() + deadline_s, deadline_s)
        try:
            yield
        finally:
            with self._lock:  # an expiry under way has ended when this is held
                self._due_s.pop(part, None)
        if self._error is not None:
            raise self._error

    def expire(self, reason: str) -> None:
        """Stop the robot now, whatever is watched; a second call, and one after an expiry, does nothing."""
        with self._lock:
            self._expire(reason)

    def check(self) -> float:
        """Expire if a watched part is overdue; return how long nothing can become so, in seconds."""
        with self._lock:
            now_s = self._clock.now_s()
            remaining_s = math.inf
            for part, shortest_s in self._deadlines_s.items():
                # A part that begins right now is overdue no sooner.
                due_s, deadline_s = self._due_s.get(part, (math.inf, shortest_s))
                if part in self._due_s and due_s - now_s > deadline_s:  # the clock was set back: begin anew
                    self._due_s[part] = (now_s + deadline_s, deadline_s)
                if due_s <= now_s:
                    self._expire(part)
                else:
                    deadline_s = min(deadline_s, due_s - now_s)
                remaining_s = min(remaining_s, deadline_s)
            return remaining_s

    def _expire(self, reason: str) -> None:
        if self.expired is not None:
            return
        self.expired = reason
        try:
            self._on_expired()
        except Exception as error:
            self._error = error

    def _run(self) -> None:
        while not self._closed.wait(self.check()):
            pass
