"""Samples this process and its machine beside a loop, in a thread and in constant memory.

    with Sampler() as sampler:
        ...                                   # load a policy, run a loop
    use = sampler.summary()
    use.joules_per_action(num_actions=300)    # {"GPU (...) by NVML": 1.7}

Enter it before the policy is loaded to see what loading takes. Energy is that of the whole part which the meter sees,
other programs and idling included; `rfedge bench latency --resources` measures the idle power too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import psutil

from rfedge.errors import ConfigError
from rfedge.machine.memory import parse_meminfo
from rfedge.machine.power.energy import EnergyMeter
from rfedge.machine.power.sources import PowerSource, find_power_sources
from rfedge.machine.power.temperatures import KernelThermometers
from rfedge.machine.probing import probe, read_text

__all__ = ["DEFAULT_PERIOD_S", "MemoryUse", "PowerUse", "ResourceUse", "Sampler", "TemperatureUse"]

DEFAULT_PERIOD_S: Final = 0.1
_TEMPERATURE_PERIOD_S: Final = 1.0  # they move slowly, and some sensors take milliseconds to read
_MIN_PERIOD_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory in bytes.

    Attributes:
        rss_start, rss_peak: resident memory of this process, and the most of all samples.
        available_start, available_lowest: `MemAvailable` of the machine; None where the kernel does not tell. Their
            difference is what a policy takes on a board whose GPU shares the memory, other programs included.
    """

    rss_start: int
    rss_peak: int
    available_start: int | None
    available_lowest: int | None

    @property
    def available_taken(self) -> int | None:
        """By how much `MemAvailable` fell at most."""
        if self.available_start is None or self.available_lowest is None:
            return None
        return self.available_start - self.available_lowest

    def after(self, rss: int, available: int | None) -> MemoryUse:
        """Return this with one more sample."""
        known = available is not None and self.available_lowest is not None
        lowest = min(available, self.available_lowest) if known else None  # type: ignore[type-var]
        return MemoryUse(self.rss_start, max(rss, self.rss_peak), self.available_start, lowest)


@dataclass(frozen=True, slots=True)
class PowerUse:
    """One meter: what it measured, and over how long."""

    source: str
    energy_j: float
    mean_w: float
    peak_w: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class TemperatureUse:
    """One sensor in degrees Celsius."""

    sensor: str
    start_c: float
    highest_c: float


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """What one run took.

    Attributes:
        sampler_share: share of one core that the sampler itself used.
        power: one entry a meter; empty where none is readable, and then `power_reason` says why.
        power_reason: why there is no more: "not readable here: ..."; "" when nothing is missing.
    """

    duration_s: float
    num_samples: int
    period_s: float
    sampler_share: float
    memory: MemoryUse
    power: tuple[PowerUse, ...]
    power_reason: str
    temperatures: tuple[TemperatureUse, ...]
    temperatures_reason: str

    def joules_per_action(self, num_actions: int) -> dict[str, float]:
        """Return joules a control step, by meter; empty where no meter is readable.

        Args:
            num_actions: control steps that were played meanwhile.

        Raises:
            ConfigError: there were none.
        """
        if num_actions < 1:
            raise ConfigError(
                "joules per action", got=f"{num_actions} actions", expected="1 or more", remedy="Run a step first."
            )
        return {use.source: use.energy_j / num_actions for use in self.power}


class Sampler:
    """A context manager; `summary` may be called inside, for the time so far, and after it.

    Args:
        sources: open power meters, which it closes; those of this machine without.

    Raises:
        ConfigError: the period is below 0.01 s.
    """

    def __init__(
        self, period_s: float = DEFAULT_PERIOD_S, *, sources: list[PowerSource] | None = None, root: Path = Path("/")
    ) -> None:
        if not period_s >= _MIN_PERIOD_S:
            raise ConfigError(
                "sampling period", got=f"{period_s} s", expected=f"{_MIN_PERIOD_S} s or more", remedy="Raise it."
            )
        self._period_s = period_s
        self._given = sources
        self._root = root
        self._process = psutil.Process()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._entered = False

    def __enter__(self) -> Sampler:
        """Open the meters, take the first sample and start the thread.

        Raises:
            RuntimeError: it was used before.
        """
        if self._entered:
            raise RuntimeError("a Sampler measures once; make another")
        self._entered = True
        self._sources, self._reasons = (
            find_power_sources(self._period_s, self._root) if self._given is None else (list(self._given), [])
        )
        self._meters = {source.name: EnergyMeter() for source in self._sources}
        self._thermometers = KernelThermometers(self._root)
        self._temperatures: dict[str, TemperatureUse] = {}
        self._temperature_time_s = float("-inf")
        self._num_samples = 0
        self._thread_cpu_s = 0.0
        rss, available = self._process.memory_info().rss, self._available_bytes()
        self._memory = MemoryUse(rss, rss, available, available)
        self._started_s = self._ended_s = time.monotonic()
        self._sample()
        self._thread = threading.Thread(target=self._run, name="rfedge-sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take the last sample, stop the thread and close the meters."""
        assert self._thread is not None
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._sample()
        for source in self._sources:
            source.close()

    def summary(self) -> ResourceUse:
        """Return what was used since it was entered, until now or until it was left.

        Raises:
            RuntimeError: it was never entered.
        """
        if not self._entered:
            raise RuntimeError("the Sampler was never entered; use it in a with statement")
        if self._thread is not None:
            self._sample()
        with self._lock:
            duration_s = self._ended_s - self._started_s
            return ResourceUse(
                duration_s=duration_s,
                num_samples=self._num_samples,
                period_s=self._period_s,
                sampler_share=self._thread_cpu_s / duration_s if duration_s > 0 else 0.0,
                memory=self._memory,
                power=tuple(
                    PowerUse(name, meter.energy_j, meter.mean_w, meter.peak_w, meter.duration_s)
                    for name, meter in self._meters.items()
                ),
                power_reason=_not_readable(self._reasons),
                temperatures=tuple(self._temperatures.values()),
                temperatures_reason=""
                if self._temperatures
                else _not_readable(["no thermal zone, no hardware monitor and no meter that tells one"]),
            )

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self._sample()
            self._thread_cpu_s = time.thread_time()

    def _sample(self) -> None:
        with self._lock:
            for source in list(self._sources):
                reading = probe(source.read)
                if reading.value is None:
                    self._drop(source, reading.reason)
                else:
                    self._meters[source.name].add(time.monotonic(), reading.value)
            rss, available = self._process.memory_info().rss, self._available_bytes()
            memory = self._memory
            lowest = (
                None if available is None or memory.available_lowest is None else min(available, memory.available_lowest)
            )
            self._memory = MemoryUse(memory.rss_start, max(rss, memory.rss_peak), memory.available_start, lowest)
            now_s = time.monotonic()
            if now_s - self._temperature_time_s >= _TEMPERATURE_PERIOD_S:
                self._temperature_time_s = now_s
                self._feel()
            self._num_samples += 1
            self._ended_s = now_s

    def _drop(self, source: PowerSource, reason: str) -> None:
        """Forget a meter that failed: half an energy is no energy."""
        self._sources.remove(source)
        del self._meters[source.name]
        self._reasons.append(f"{source.name} stopped: {reason}")
        source.close()

    def _feel(self) -> None:
        readings: Mapping[str, float] = self._thermometers.read()
        for source in self._sources:
            readings = {**readings, **(probe(source.temperatures_c).value or {})}
        for name, celsius in readings.items():
            known = self._temperatures.get(name, TemperatureUse(name, celsius, celsius))
            self._temperatures[name] = TemperatureUse(name, known.start_c, max(known.highest_c, celsius))

    def _available_bytes(self) -> int | None:
        return parse_meminfo(read_text(self._root / "proc/meminfo")).get("MemAvailable")


def _not_readable(reasons: list[str]) -> str:
    return f"not readable here: {'; '.join(reasons)}" if reasons else ""
