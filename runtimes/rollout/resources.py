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
from rfedge.records.resources import ResourceRecord
from rfedge.runtimes.policy.edge_policy import EdgePolicy

if TYPE_CHECKING:
    from rfedge.machine.power.sampler import Sampler

_MOST_IDLE_S: Final = 5.0


def open_sampler() -> Sampler:
    """Return a sampler, to be entered; its meters are imported here, because most runs need none."""
    from rfedge.machine.power.sampler import Sampler

    return Sampler()


def measure_idle(seconds: float) -> ResourceRecord:
    """Sample the machine while this process does nothing, for `seconds` and not longer than 5."""
    with open_sampler() as sampler:
        time.sleep(min(seconds, _MOST_IDLE_S))
    return sampler.summary()


def measure_resources(
    policies: Mapping[str, EdgePolicy],
    observations: Sequence[Observation],
    instruction: str,
    *,
    seconds: float,
    execute_steps: int,
    idle: ResourceRecord,
) -> dict[str, ResourceRecord]:
    """Call each policy in a row for `seconds`, one after the other; a call serves `execute_steps` control steps."""
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
        records[name] = sampler.summary(calls * execute_steps, idle)
    return records
