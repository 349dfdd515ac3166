"""Memory and power in the latency report, where they are asked for."""

import json
import time
from functools import partial
from pathlib import Path

import pytest

from rfedge.benchmarks.latency import run
from rfedge.benchmarks.latency.run import LatencyPlan, LatencyReport, run_latency
from rfedge.cli.app import main
from rfedge.errors import ConfigError
from rfedge.machine.power.energy import Reading
from rfedge.machine.power.sampler import Sampler
from rfedge.runtimes.backends.base import RuntimeSettings
from tests.errors import raises

SETTINGS = RuntimeSettings(threads=1)


class Supply:
    """A meter that shows 10 W."""

    name = "bench supply"

    def read(self) -> Reading:
        return Reading(power_w=10.0)

    def temperatures_c(self) -> dict[str, float]:
        return {"shunt": 41.0}

    def close(self) -> None:
        pass


def measured(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> LatencyReport:
    monkeypatch.setattr(run, "Sampler", partial(Sampler, 0.01, sources=[Supply()]))
    plan = LatencyPlan(
        bundles=(bundle, bundle),
        execute_steps=2,
        warmup=1,
        iterations=3,
        settle_ms=0,
        settings=SETTINGS,
        resource_seconds=0.2,
    )
    return run_latency(plan)


def test_each_variant_has_its_joules_per_action(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured(bundle, monkeypatch)
    assert report.idle.num_actions == 0
    assert report.idle.power[0].joules_per_action is None
    first, second, again = report.variants
    assert again.resources is None, "the same bundle a second time tells nothing new"
    for use in (first.resources, second.resources):
        assert use.num_actions % 2 == 0
        assert use.num_actions > 0
        (power,) = use.power
        assert power.source == "bench supply"
        assert power.energy_j == pytest.approx(10 * use.duration_s, rel=0.05)
        assert power.joules_per_action == pytest.approx(power.energy_j / use.num_actions)
        assert power.joules_per_action_above_idle == pytest.approx(0.0, abs=1e-6)
        assert use.rss_peak_bytes >= use.rss_start_bytes > 0
    text = report.model_dump_json(indent=2)
    assert LatencyReport.model_validate_json(text).model_dump_json(indent=2) == text
    assert "resources" not in json.loads(text)["variants"][2]


def test_a_report_without_them_has_no_word_of_them(bundle: Path) -> None:
    report = run_latency(LatencyPlan(bundles=(bundle,), warmup=1, iterations=2, settle_ms=0, settings=SETTINGS))
    text = report.model_dump_json()
    assert '"resources"' not in text
    assert '"idle"' not in text
    with raises(ConfigError, "resource_seconds"):
        LatencyPlan(bundles=(bundle,), resource_seconds=-1)


def test_idle_power_is_subtracted_for_the_time_of_the_meter() -> None:
    with Sampler(0.01, sources=[Supply()]) as sampler:
        time.sleep(0.1)
    idle = sampler.summary()
    idle = idle.model_copy(update={"power": (idle.power[0].model_copy(update={"mean_w": 4.0}),)})
    (power,) = sampler.summary(8, idle).power
    assert power.joules_per_action == pytest.approx(power.energy_j / 8)
    assert power.joules_per_action_above_idle == pytest.approx(0.6 * power.energy_j / 8)
    assert sampler.summary(8).power[0].joules_per_action_above_idle is None


def test_the_command_shows_them_and_what_is_missing(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bench", "latency", str(bundle), "--iterations", "2", "--warmup", "1", "--settle-ms", "0", "--threads", "1"]
    monkeypatch.setattr(run, "Sampler", partial(Sampler, 0.01, sources=[]))
    with pytest.raises(SystemExit) as end:
        main([*command, "--resource-seconds", "0.1"])
    assert end.value.code in (None, 0)
    shown = capsys.readouterr().out
    assert "called in a row" in shown
    assert "called in a row: power" not in shown
    assert "of one core" in shown
    monkeypatch.setattr(run, "Sampler", partial(Sampler, 0.01, sources=[Supply()]))
    with pytest.raises(SystemExit):
        main([*command, "--resource-seconds", "0.1", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["variants"][0]["resources"]["power"][0]["source"] == "bench supply"
    assert "bench supply" in err
