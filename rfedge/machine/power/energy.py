"""From readings of a power meter to energy: differences of a counter where there is one, else trapezoids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """Reading of a source: one of the two."""

    power_w: float | None = None  # watts now
    energy_j: float | None = None  # joules of a counter that only rises


class WrappingCounter:
    """Makes a counter that reads as 0 again at `modulus` one that only rises."""

    def __init__(self, modulus: int) -> None:
        self._modulus = modulus
        self._last: int | None = None
        self._total = 0

    def add(self, count: int) -> int:
        """Return all that was counted since the first call; a count below the last one has passed the modulus once."""
        if self._last is not None:
            self._total += (count - self._last) % self._modulus
        self._last = count
        return self._total


class EnergyMeter:
    """Adds up one source's energy; its memory does not grow."""

    def __init__(self) -> None:
        self.energy_j = 0.0
        self.peak_w = 0.0
        self._first_s: float | None = None
        self._last_s = 0.0
        self._last = Reading()

    @property
    def duration_s(self) -> float:
        """Seconds between the first and the last reading."""
        return 0.0 if self._first_s is None else self._last_s - self._first_s

    @property
    def mean_w(self) -> float:
        """Energy over time; 0 before the second reading."""
        return self.energy_j / self.duration_s if self.duration_s > 0 else 0.0

    def add(self, time_s: float, reading: Reading) -> None:
        """Take the reading at `time_s` of a monotonic clock; a source tells either power or energy, always the same."""
        if self._first_s is None:
            self._first_s = time_s
            self.peak_w = reading.power_w or 0.0
        else:
            self._advance(time_s - self._last_s, reading)
        self._last_s, self._last = time_s, reading

    def _advance(self, seconds: float, reading: Reading) -> None:
        if reading.energy_j is not None and self._last.energy_j is not None:
            joules = reading.energy_j - self._last.energy_j
            power_w = joules / seconds if seconds > 0 else 0.0
        else:
            assert reading.power_w is not None
            assert self._last.power_w is not None
            joules = seconds * (reading.power_w + self._last.power_w) / 2
            power_w = reading.power_w
        self.energy_j += joules
        self.peak_w = max(self.peak_w, power_w)
