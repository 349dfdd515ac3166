"""The one thread that owns the policy, and the tickets of those who wait for it.

A runner reuses its buffers, so one call runs at a time. Tickets are served in order of arrival and every connection has
at most one, which makes the order fair: nobody is served twice while another waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")


class PolicyWorker:
    """Runs calls one after the other in a thread of its own."""

    def __init__(self) -> None:
        self._executor: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rfedge-policy")
        self._running_since_s: float | None = None

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call; the ticket's `cancel()` is true as long as the call has not begun."""
        return self._executor.submit(self._run, call)

    def busy_s(self) -> float:
        """Return how long the present call has been running; 0.0 between calls."""
        since_s = self._running_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def close(self) -> None:
        """Drop what waits; the call under way ends first."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(self, call: Callable[[], T]) -> T:
        self._running_since_s = time.monotonic()
        try:
            return call()
        finally:
            self._running_since_s = None
