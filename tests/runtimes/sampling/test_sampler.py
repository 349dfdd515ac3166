"""The sampler beside real work: what it adds up, what it admits, and what it costs."""

import mmap
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from rfedge.errors import ConfigError
from rfedge.machine.power.energy import Reading
from rfedge.machine.power.sampler import Sampler
from rfedge.machine.probing import Absent
from tests.errors import raises


class ConstantPower:
    """A meter of 20 W that may break after some readings."""

    name = "bench supply"

    def __init__(self, *, breaks_after: int | None = None) -> None:
        self.breaks_after, self.readings, self.is_open = breaks_after, 0, True

    def read(self) -> Reading:
        assert self.is_open
        self.readings += 1
        if self.breaks_after is not None and self.readings > self.breaks_after:
            raise Absent("its cable is out")
        return Reading(power_w=20.0)

    def temperatures_c(self) -> dict[str, float]:
        return {"shunt": 40.0 + self.readings}

    def close(self) -> None:
        self.is_open = False


def test_energy_and_joules_per_action() -> None:
    source = ConstantPower()
    with Sampler(0.01, sources=[source]) as sampler:
        time.sleep(0.2)
        inside = sampler.summary()
        time.sleep(0.2)
    use = sampler.summary(10)
    (power,) = use.power
    assert power.source == "bench supply"
    assert 20 * 0.4 <= power.energy_j <= 20 * use.duration_s + 1e-9
    assert (power.mean_w, power.peak_w) == (pytest.approx(20.0), 20.0)
    assert power.joules_per_action == pytest.approx(power.energy_j / 10)
    assert 0.2 <= inside.duration_s < use.duration_s
    assert 2 <= inside.num_samples < use.num_samples
    assert use.power_reason == ""
    assert (use.temperatures[0].sensor, use.temperatures[0].start_c) == ("shunt", 41.0)
    assert not source.is_open
    assert "rfedge-sampler" not in {thread.name for thread in threading.enumerate()}
    assert sampler.summary(10) == use, "nothing is counted after the end"


def test_memory_that_comes_and_goes_is_seen() -> None:
    # From the kernel: an allocator could give what this process holds already.
    with Sampler(0.01, sources=[]) as sampler, mmap.mmap(-1, 64_000_000) as block:
        block.write(bytes(64_000_000))
        time.sleep(0.5)
    use = sampler.summary()
    assert use.rss_peak_bytes - use.rss_start_bytes > 55_000_000
    assert use.available_start_bytes is not None
    assert use.available_lowest_bytes is not None


def test_a_meter_that_breaks_is_left_out_with_its_reason() -> None:
    source = ConstantPower(breaks_after=3)
    with Sampler(0.01, sources=[source]) as sampler:
        time.sleep(0.1)
    use = sampler.summary()
    assert use.power == ()
    assert use.power_reason == "not readable here: bench supply stopped: its cable is out"
    assert not source.is_open


def test_a_machine_that_tells_nothing_says_so_and_never_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jtop", "pynvml"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with Sampler(0.01, root=tmp_path) as sampler:
        pass
    use = sampler.summary()
    assert use.power == ()
    assert use.power_reason == (
        "not readable here: jtop: jetson-stats is not installed; no tegrastats command; "
        "NVML: nvidia-ml-py is not installed; no RAPL counters under /sys/class/powercap"
    )
    assert use.temperatures == ()
    assert use.temperatures_reason.startswith("not readable here: no thermal zone")
    assert (use.available_start_bytes, use.available_lowest_bytes) == (None, None)


def test_its_memory_does_not_grow() -> None:
    with Sampler(10.0, sources=[ConstantPower()]) as sampler:
        for _ in range(50):
            sampler._sample()
        tracemalloc.start()
        try:
            for _ in range(20):
                sampler._sample()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(300):
                sampler._sample()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 5_000


def test_it_takes_little_of_a_core() -> None:
    with Sampler(sources=[ConstantPower()]) as sampler:
        time.sleep(1.0)
    assert 0 < sampler.summary().sampler_share < 0.05  # 0.003 on an idle core of a server


def test_wrong_uses_are_told() -> None:
    with raises(ConfigError, "sampling period", got="0.001 s", expected="0.01 s or more"):
        Sampler(0.001)
    with raises(ConfigError, "sampling period", got="nan s"):
        Sampler(float("nan"))
    sampler = Sampler(sources=[])
    with pytest.raises(RuntimeError, match="never entered"):
        sampler.summary()
    with sampler:
        pass
    with pytest.raises(RuntimeError, match="measures once"), sampler:
        pass
