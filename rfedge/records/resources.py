"""Resources of one stretch of time: memory, power and temperature."""

from __future__ import annotations

from rfedge.records.record import Record


class PowerRecord(Record):
    source: str  # what was measured, and by what
    energy_j: float  # of all that the meter sees, other programs and idling included
    mean_w: float
    peak_w: float
    joules_per_action: float | None  # energy over control steps; None where none was played
    joules_per_action_above_idle: float | None  # the same less the idle power; None where that was not measured


class TemperatureRecord(Record):
    sensor: str
    start_c: float
    highest_c: float


class ResourceRecord(Record):
    """Resources of one stretch of time; the reasons say why there is nothing, or nothing more, and are "" otherwise."""

    duration_s: float
    num_actions: int  # control steps that were played meanwhile
    num_samples: int
    period_s: float
    sampler_share: float  # share of one core that the sampler used
    # rss_start_bytes, rss_peak_bytes: of the process, with every policy that it has loaded
    rss_start_bytes: int
    rss_peak_bytes: int
    # available_start_bytes, available_lowest_bytes: `MemAvailable` of the machine, None where it is not reported
    available_start_bytes: int | None
    available_lowest_bytes: int | None
    power: tuple[PowerRecord, ...]
    power_reason: str
    temperatures: tuple[TemperatureRecord, ...]
    temperatures_reason: str
