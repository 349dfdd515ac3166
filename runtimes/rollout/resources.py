"""Memory, power and temperature of policies that run in a row, each under a sampler of its own.

Apart from the timings: there the variants take turns, so that nobody can say whose joules they were, and a sampler would
take part.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from rfedge.messages import Observation
from rfedge.records.record import Record
from rfedge.runtimes.policy.edge_policy import EdgePolicy

if TYPE_CHECKING:
    from rfedge.machine.power.sampler import ResourceUse, Sampler

_MOST_IDLE_S: Final = 5.0


class PowerRecord(Record):
    """One meter.

    Attributes:
        source: what was measured, and by what.
        energy_j: of all that the meter sees, other programs and idling included.
        joules_per_action: energy over control steps; None where none was played.
        joules_per_action_above_idle: the same less the idle power; None where that was not measured.
    """

    source: str
    energy_j: float
    mean_w: float
    peak_w: float
    joules_per_action: float | None
    joules_per_action_above_idle: float | None


class TemperatureRecord(Record):
    """One sensor."""

    sensor: str
    start_c: float
    highest_c: float


class ResourceRecord(Record):
    """What one stretch of time took.

    Attributes:
        num_actions: control steps that were played meanwhile.
        sampler_share: share of one core that the sampler used.
        rss_start_bytes, rss_peak_bytes: of the process, with every policy that it has loaded.
        available_start_bytes, available_lowest_bytes: `MemAvailable` of the machine, None where it is not reported.
        power_reason, temperatures_reason: why there is nothing, or nothing more; "" when nothing is missing.
    """

    duration_s: float
    num_actions: int
    num_samples: int
    period_s: float
    sampler_share: float
    rss_start_bytes: int
    rss_peak_bytes: int
    available_start_bytes: int | None
    available_lowest_bytes: int | None
    power: tuple[PowerRecord, ...]
    power_reason: str
    temperatures: tuple[TemperatureRecord, ...]
    temperatures_reason: str

    @classmethod
    def of(cls, use: ResourceUse, num_actions: int, idle: ResourceRecord | None = None) -> ResourceRecord:
        """Return the record of a sampler's summary.

        Args:
            num_actions: control steps that were played meanwhile, 0 for none.
            idle: of the same machine while it did nothing.
        """
        idle_w = {} if idle is None else {power.source: power.mean_w for power in idle.power}
        memory = use.memory
        return cls(
            duration_s=use.duration_s,
            num_actions=num_actions,
            num_samples=use.num_samples,
            period_s=use.period_s,
            sampler_share=use.sampler_share,
            rss_start_bytes=memory.rss_start,
            rss_peak_bytes=memory.rss_peak,
            available_start_bytes=memory.available_start,
            available_lowest_bytes=memory.available_lowest,
            power=tuple(
                PowerRecord(
                    source=power.source,
                    energy_j=power.energy_j,
                    mean_w=power.mean_w,
                    peak_w=power.peak_w,
                    joules_per_action=power.energy_j / num_actions if num_actions else None,
                    joules_per_action_above_idle=(power.energy_j - idle_w[power.source] * power.duration_s) / num_actions
                    if num_actions and power.source in idle_w
                    else None,
                )
                for power in use.power
            ),
            power_reason=use.power_reason,
            temperatures=tuple(
                TemperatureRecord(sensor=sensor.sensor, start_c=sensor.start_c, highest_c=sensor.highest_c)
                for sensor in use.temperatures
            ),
            temperatures_reason=use.temperatures_reason,
        )


def open_sampler() -> Sampler:
    """Return a sampler, to be entered; its meters are imported here, because most runs need none."""
    from rfedge.machine.power.sampler import Sampler

    return Sampler()


def measure_idle(seconds: float) -> ResourceRecord:
    """Sample the machine while this process does nothing, for `seconds` and not longer than 5."""
    with open_sampler() as sampler:
        time.sleep(min(seconds, _MOST_IDLE_S))
    return ResourceRecord.of(sampler.summary(), 0)


def measure_resources(
    policies: Mapping[str, EdgePolicy],
    observations: Sequence[Observation],
    instruction: str,
    *,
    seconds: float,
    execute_steps: int,
    idle: ResourceRecord,
) -> dict[str, ResourceRecord]:
    """Call each policy in a row for `seconds`, one policy after the other.

    Args:
        execute_steps: control steps that one call serves.
        idle: from `measure_idle`, on the same machine just before.
    """
    records = {}
    for name, policy in policies.items():
        policy.reset(instruction)
        calls = 0
        with open_sampler() as sampler:
            started_s = time.monotonic()
            for observation in itertools.cycle(observations):
                policy.act(observation)
                calls += 1
                if time.monotonic() - started_s >= seconds:
                    break
        records[name] = ResourceRecord.of(sampler.summary(), calls * execute_steps, idle)
    return records
