"""Holds a rate on the monotonic clock, with absolute deadlines.

Sleeping for the rest of each period drifts by the oversleep of every step; a deadline that is always `start + n *
interval` does not. A late step is a return value, because only the caller knows what being late means.
"""

from __future__ import annotations

import math
import time
from typing import Protocol

from rfedge.errors import ConfigError

__all__ = ["Clock", "MonotonicClock", "Pace", "RateKeeper"]


class Clock(Protocol):
    """Seconds that pass; tests pass one that never sleeps. A wall clock serves too: a jump of it delays no step."""

    def now_s(self) -> float:
        """Return seconds since some fixed moment."""

    def sleep_s(self, seconds: float) -> None:
        """Return after `seconds`."""


class MonotonicClock:
    def now_s(self) -> float:
        return time.monotonic()

    def sleep_s(self, seconds: float) -> None:
        time.sleep(seconds)


class Pace(Protocol):
    """Clock that says when a control step begins and whether its action is late; a replay has its own."""

    @property
    def num_late(self) -> int:
        """Steps that began late."""

    @property
    def num_skipped(self) -> int:
        """Deadlines left out because a step was late by whole periods."""

    def wait(self) -> float:
        """Wait for the next step and return how late it begins, in seconds."""

    def overdue_s(self) -> float:
        """Return how long ago the step after this one should have begun, in seconds; 0.0 while there is time."""


class RateKeeper:
    """Waits for the deadlines `start + n / rate_hz`; the clock starts at the first `wait`.

    A step that is late by whole periods skips their deadlines instead of running the next steps in a burst: a robot
    that catches up moves faster than commanded. With a clock that is set back the deadlines begin anew; one that is
    set forward is a late step. `wake_lag_s` is how long after its deadline the present step really began.

    Raises:
        ConfigError: the rate is not a positive number.
    """

    def __init__(self, rate_hz: float, clock: Clock | None = None) -> None:
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise ConfigError("rate_hz", got=rate_hz, expected="a positive number", remedy="Give it in hertz.")
        self.rate_hz = rate_hz
        self._interval_s = 1.0 / rate_hz
        self._clock = clock or MonotonicClock()
        self._start_s: float | None = None
        self._ticks = 0
        self.num_late = 0
        self.num_skipped = 0
        self.wake_lag_s = 0.0

    def wait(self) -> float:
        """Wait for the next deadline and return how late this call was, in seconds; the first call only starts the clock."""
        now_s = self._clock.now_s()
        if self._start_s is None:
            self._start_s = now_s
            return 0.0
        self._ticks += 1
        deadline_s = self._start_s + self._ticks * self._interval_s
        if deadline_s - now_s > 2.0 * self._interval_s:
            # A deadline is one interval away, and rounding; more says that the clock was set back.
            self._start_s, self._ticks = now_s, 0
            self.wake_lag_s = 0.0
            return 0.0
        if now_s <= deadline_s:
            self._clock.sleep_s(deadline_s - now_s)
            self.wake_lag_s = max(0.0, self._clock.now_s() - deadline_s)
            return 0.0
        self.wake_lag_s = now_s - deadline_s
        self.num_late += 1
        skipped = int(self.wake_lag_s / self._interval_s)
        self._ticks += skipped
        self.num_skipped += skipped
        return self.wake_lag_s

    def overdue_s(self) -> float:
        """Return how long ago the next deadline was, in seconds; 0.0 while it lies ahead."""
        if self._start_s is None:
            return 0.0
        return max(0.0, self._clock.now_s() - (self._start_s + (self._ticks + 1) * self._interval_s))
