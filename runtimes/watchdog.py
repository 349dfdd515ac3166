"""Sees that a call takes too long while it is still running, and stops the robot from another thread.

In the synchronous modes the loop's own thread waits for the policy, so it cannot notice that the policy hangs. A second
thread can; it sleeps until the deadline of the watched call and costs nothing on a call that ends in time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rfedge.errors import ConfigError, explain
from rfedge.runtimes.clock import Clock, MonotonicClock

__all__ = ["Watchdog"]


class Watchdog:
    """Calls `on_expired` once, in its own thread, when a watched call is not over after `deadline_s`.

    Whoever watched then finds `has_expired` true after the call and must not act on its answer: `on_expired` has
    returned by then. Use it as a context manager, or call `start` and `close`.

    Args:
        deadline_s: how long a call may take.
        on_expired: stops the robot; whatever it raises is raised again from `watching`.
        clock: where time comes from.

    Raises:
        ConfigError: the deadline is not a positive number.
    """

    def __init__(self, deadline_s: float, on_expired: Callable[[], None], clock: Clock | None = None) -> None:
        if not (math.isfinite(deadline_s) and deadline_s > 0):
            raise ConfigError(
                explain("backbone deadline", got=deadline_s, expected="a positive number of seconds", remedy="Raise it.")
            )
        self._deadline_s = deadline_s
        self._on_expired = on_expired
        self._clock = clock or MonotonicClock()
        self._lock = threading.Lock()
        self._due_s: float | None = None
        self._error: Exception | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.has_expired = False

    def __enter__(self) -> Watchdog:
        """Start the thread."""
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End it."""
        self.close()

    def start(self) -> None:
        """Start the thread that looks; without it only `check` does."""
        self._thread = threading.Thread(target=self._run, name="rfedge-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; a second call does nothing."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs inside the block.

        Raises:
            Exception: what `on_expired` raised.
        """
        self._due_s = self._clock.now_s() + self._deadline_s
        try:
            yield
        finally:
            with self._lock:  # an expiry under way has ended when this is held
                self._due_s = None
        if self._error is not None:
            raise self._error

    def check(self) -> float:
        """Expire if the watched call is overdue; return how long nothing can become so, in seconds."""
        with self._lock:
            if self._due_s is None or self.has_expired:
                return self._deadline_s  # a call that begins right now is overdue no sooner
            remaining_s = self._due_s - self._clock.now_s()
            if remaining_s > 0:
                return remaining_s
            self.has_expired = True
            try:
                self._on_expired()
            except Exception as error:
                self._error = error
            return self._deadline_s

    def _run(self) -> None:
        while not self._closed.wait(self.check()):
            pass
