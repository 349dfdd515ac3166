"""Samples this process and its machine beside a loop, in a thread and in constant memory.

    with Sampler() as sampler:
        ...                                   # load a policy, run a loop
    use = sampler.summary(num_actions=300)    # use.power[0].joules_per_action

Enter it before the policy is loaded to see what loading takes. Energy is that of the whole part which the meter sees,
other programs and idling included; `rfedge bench latency --resource-seconds` measures the idle power too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from rfedge.errors import ConfigError
from rfedge.machine.memory import parse_meminfo
from rfedge.machine.power.energy import EnergyMeter
from rfedge.machine.power.sources import PowerSource, find_power_sources
from rfedge.machine.probing import probe, read_text
from rfedge.records.resources import PowerRecord, ResourceRecord, TemperatureRecord

DEFAULT_PERIOD_S: Final = 0.1
_TEMPERATURE_PERIOD_S: Final = 1.0  # they move slowly, and some sensors take milliseconds to read
_MIN_PERIOD_S: Final = 0.01
_MILLI: Final = 1e-3


class Sampler:
    """A context manager; `summary` may be called inside, for the time so far, and after it. It closes its `sources`.

    Raises ConfigError if the period is below 0.01 s.
    """

    def __init__(
        self, period_s: float = DEFAULT_PERIOD_S, *, sources: list[PowerSource] | None = None, root: Path = Path("/")
    ) -> None:
        if not period_s >= _MIN_PERIOD_S:
            remedy = "Raise it."
            raise ConfigError("sampling period", got=f"{period_s} s", expected=f"{_MIN_PERIOD_S} s or more", remedy=remedy)
        self._period_s = period_s
        self._given = sources
        self._root = root
        self._process = psutil.Process()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._entered = False

    def __enter__(self) -> Sampler:
        if self._entered:
            raise RuntimeError("a Sampler measures once; make another")
        self._entered = True
        self._sources, self._reasons = (
            find_power_sources(self._period_s, self._root) if self._given is None else (list(self._given), [])
        )
        self._meters = {source.name: EnergyMeter() for source in self._sources}
        self._thermometers = KernelThermometers(self._root)
        self._temperatures: dict[str, TemperatureRecord] = {}
        self._temperature_time_s = float("-inf")
        self._num_samples = 0
        self._thread_cpu_s = 0.0
        self._rss_start = self._rss_peak = self._process.memory_info().rss
        self._available_start = self._available_lowest = self._available_bytes()
        self._started_s = self._ended_s = time.monotonic()
        self._sample()
        self._thread = threading.Thread(target=self._run, name="rfedge-sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._sample()
        for source in self._sources:
            source.close()

    def summary(self, num_actions: int = 0, idle: ResourceRecord | None = None) -> ResourceRecord:
        """Return what was used since it was entered, until now or until it was left.

        `num_actions` control steps were played meanwhile; `idle` is of the same machine while it did nothing.
        """
        if not self._entered:
            raise RuntimeError("the Sampler was never entered; use it in a with statement")
        if self._thread is not None:
            self._sample()
        idle_w = {} if idle is None else {power.source: power.mean_w for power in idle.power}
        with self._lock:
            duration_s = self._ended_s - self._started_s
            return ResourceRecord(
                duration_s=duration_s,
                num_actions=num_actions,
                num_samples=self._num_samples,
                period_s=self._period_s,
                sampler_share=self._thread_cpu_s / duration_s if duration_s > 0 else 0.0,
                rss_start_bytes=self._rss_start,
                rss_peak_bytes=self._rss_peak,
                available_start_bytes=self._available_start,
                available_lowest_bytes=self._available_lowest,
                power=tuple(_power(name, meter, num_actions, idle_w.get(name)) for name, meter in self._meters.items()),
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
            self._rss_peak = max(self._rss_peak, self._process.memory_info().rss)
            if (available := self._available_bytes()) is not None and self._available_lowest is not None:
                self._available_lowest = min(available, self._available_lowest)
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
            known = self._temperatures.get(name)
            start_c, highest_c = (celsius, celsius) if known is None else (known.start_c, max(known.highest_c, celsius))
            self._temperatures[name] = TemperatureRecord(sensor=name, start_c=start_c, highest_c=highest_c)

    def _available_bytes(self) -> int | None:
        return parse_meminfo(read_text(self._root / "proc/meminfo")).get("MemAvailable")


def _power(source: str, meter: EnergyMeter, num_actions: int, idle_w: float | None) -> PowerRecord:
    above_idle_j = None if idle_w is None else meter.energy_j - idle_w * meter.duration_s
    return PowerRecord(
        source=source,
        energy_j=meter.energy_j,
        mean_w=meter.mean_w,
        peak_w=meter.peak_w,
        joules_per_action=meter.energy_j / num_actions if num_actions else None,
        joules_per_action_above_idle=above_idle_j / num_actions if num_actions and above_idle_j is not None else None,
    )


def _not_readable(reasons: list[str]) -> str:
    return f"not readable here: {'; '.join(reasons)}" if reasons else ""


class KernelThermometers:
    """Every temperature file below `root`; found once, then only read."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._files: dict[str, Path] = {}
        for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
            self._add(read_text(zone / "type") or zone.name, zone / "temp")
        for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            chip = read_text(monitor / "name") or monitor.name
            for file in sorted(monitor.glob("temp*_input")):
                label = read_text(file.with_name(file.name.replace("_input", "_label")))
                self._add(f"{chip} {label}".strip(), file)

    def read(self) -> dict[str, float]:
        """Return degrees Celsius by name; a sensor of a part without power tells nothing and is left out."""
        texts = {name: read_text(path) for name, path in self._files.items()}
        return {name: int(text) * _MILLI for name, text in texts.items() if text.lstrip("-").isdigit()}

    def _add(self, name: str, path: Path) -> None:
        unique, number = name, 2
        while unique in self._files:
            unique, number = f"{name} #{number}", number + 1
        self._files[unique] = path
