"""Holds a rate on the monotonic clock, with absolute deadlines.

Sleeping for the rest of each period drifts by the oversleep of every step; a deadline that is always `start + n *
interval` does not. A late step is a return value, because only the caller knows what being late means.
"""

from __future__ import annotations

import math
import time
from typing import Protocol

from rfedge.errors import ConfigError, explain

__all__ = ["Clock", "MonotonicClock", "RateKeeper"]


class Clock(Protocol):
    """Time that never jumps; tests pass one that never sleeps."""

    def now_s(self) -> float:
        """Return seconds since some fixed moment."""

    def sleep_s(self, seconds: float) -> None:
        """Return after `seconds`."""


class MonotonicClock:
    """The machine's own."""

    def now_s(self) -> float:
        return time.monotonic()

    def sleep_s(self, seconds: float) -> None:
        time.sleep(seconds)


class RateKeeper:
    """Waits for the deadlines `start + n / rate_hz`; the clock starts at the first `wait`.

    A step that is late by whole periods skips their deadlines instead of running the next steps in a burst: a robot
    that catches up moves faster than it was told to.

    Args:
        rate_hz: deadlines per second.
        clock: where time comes from.

    Raises:
        ConfigError: the rate is not a positive number.
    """

    def __init__(self, rate_hz: float, clock: Clock | None = None) -> None:
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise ConfigError(explain("rate_hz", got=rate_hz, expected="a positive number", remedy="Give it in hertz."))
        self._interval_s = 1.0 / rate_hz
        self._clock = clock or MonotonicClock()
        self._start_s: float | None = None
        self._ticks = 0
        self.num_late = 0
        self.num_skipped = 0

    def wait(self) -> float:
        """Wait for the next deadline and return how late this call was, in seconds (0.0 when in time).

        The first call only starts the clock.
        """
        now_s = self._clock.now_s()
        if self._start_s is None:
            self._start_s = now_s
            return 0.0
        self._ticks += 1
        remaining_s = self._start_s + self._ticks * self._interval_s - now_s
        if remaining_s >= 0:
            self._clock.sleep_s(remaining_s)
            return 0.0
        self.num_late += 1
        skipped = int(-remaining_s / self._interval_s)
        self._ticks += skipped
        self.num_skipped += skipped
        return -remaining_s
