from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rfedge.benchmarks.latency.loop import LoopPlan, run_loop
from rfedge.benchmarks.latency.loop_policy import TimedBackbone, timed_policy
from rfedge.benchmarks.latency.loop_report import LoopReport, assert_memory, assert_misses, assert_overhead_ms
from rfedge.cli.app import main
from rfedge.errors import ConfigError, GateError
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle

PLAN = LoopPlan(minutes=0.02, overlapped_minutes=0.02, rate_hz=50.0, backbone_ms=2.0, steps=300, samples=100, work="sleep")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the bundle already, so that nothing is exported."""
    folder = tmp_path_factory.mktemp("loop")
    write_handmade_bundle(folder / "bundle", tiny_config(chunk_size=16))
    write_handmade_bundle(folder / "short", tiny_config(chunk_size=4))
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> LoopReport:
    return run_loop(dataclasses.replace(PLAN, folder=folder, bundles=(folder / "short",)))


def test_every_part_is_in_the_document(report: LoopReport) -> None:
    assert LoopReport.model_validate_json(report.model_dump_json()) == report
    assert report.work == "sleep"
    assert report.overhead.loop_ms.n == report.overhead.recorded_ms.n == 100
    assert report.overhead.loop_ms.p50 > 0
    assert (report.rate.num_steps, report.rate.wake_lag_ms.n, report.rate.num_inferences) == (60, 60, 60)
    assert report.rate.age_ms.p50 >= 2.0
    assert report.rate.max_age_steps == 0
    assert report.overlapped.backbone_ms == pytest.approx(60.0)
    assert report.overlapped.num_inferences < 30
    assert report.overlapped.max_age_steps >= 3
    assert report.overlapped.age_ms.p50 > 60.0
    assert report.memory.num_steps == 300
    assert report.memory.max_bytes >= report.memory.first_bytes > 2**20


def test_the_table_holds_what_each_chunk_allows(report: LoopReport) -> None:
    rows = [(row.chunk_size, row.execute_steps) for row in report.open_loop]
    assert rows == [*((16, steps) for steps in (1, 2, 4, 8, 16)), *((4, steps) for steps in (1, 2, 4))]
    first, *_, last = report.open_loop[:5]
    assert last.total_ms < first.total_ms / 2, "sixteen steps share one inference"
    assert all(0 < row.backbone_ms < row.total_ms for row in report.open_loop)


def test_gates_name_both_numbers(report: LoopReport) -> None:
    assert_overhead_ms(report, 1e6)
    assert_misses(report, 1000)
    assert_memory(report, 10.0)
    with pytest.raises(GateError, match=r"loop overhead: got \d+\.\d+ ms \(p99\), expected at most 0 ms"):
        assert_overhead_ms(report, 0.0)
    with pytest.raises(GateError, match=r"rate of 50 Hz: got \d+ late or missed steps, expected at most -1"):
        assert_misses(report, -1)
    grown = report.model_copy(update={"memory": report.memory.model_copy(update={"growth": 0.025})})
    with pytest.raises(GateError, match=r"memory over 300 steps: got \+2.50%, expected at most 1.00%"):
        assert_memory(grown, 0.01)


@pytest.mark.parametrize("work", ["busy", "sleep"])
def test_the_backbone_takes_its_time_in_front_of_the_real_head(folder: Path, work: str) -> None:
    with timed_policy(folder / "bundle", 0.01, work) as policy:  # type: ignore[arg-type]
        assert isinstance(policy.parts.backbone, TimedBackbone)
        inputs = policy.parts.contract.backbone.sample_inputs(np.random.default_rng(0), dynamic_size=3)
        first, second = policy.parts.backbone.infer(inputs), policy.parts.backbone.infer(inputs)
        np.testing.assert_array_equal(first["feature"], second["feature"])
        policy.reset("open the drawer")
        from rfedge.benchmarks.latency.run import sample_observations

        step = policy.act(sample_observations(policy.parts.contract, 1, seed=0)[0])
        assert 10.0 <= step.timings_ms["backbone"] < step.timings_ms["total"]
        assert step.actions.shape == (16, 7)


def test_plans_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps: got 9, expected at least 100. Raise --steps."):
        LoopPlan(steps=9)
    with pytest.raises(ConfigError, match="minutes: got 0, expected two control steps or more"):
        LoopPlan(minutes=0)
    with pytest.raises(ConfigError, match="work: got 'lazy', expected one of busy, sleep"):
        LoopPlan(work="lazy")  # type: ignore[arg-type]


def test_the_command_prints_tables_and_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--minutes",
        "0.01",
        "--overlapped-minutes",
        "0.01",
        "--rate-hz",
        "50",
        "--steps",
        "100",
        "--samples",
        "48",
        "--work",
        "sleep",
    ]
    flags += ["--assert-memory", "-1"]
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "loop", "--folder", str(folder), *flags, "--json"])
    assert exit_.value.code == 1
    captured = capsys.readouterr()
    assert LoopReport.model_validate_json(captured.out).memory.num_steps == 100
    assert len(captured.out.splitlines()) == 1
    assert json.loads(captured.out)["format"] == "rfedge-loop"
    for text in (
        "loop alone",
        "rates held",
        "open loop: milliseconds per control step",
        "rfedge: memory over 100 steps: got",
    ):
        assert text in captured.err
