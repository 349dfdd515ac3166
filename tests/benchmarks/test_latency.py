import dataclasses
import gc
import json
from pathlib import Path

import numpy as np
import pytest

from rfedge.benchmarks.latency.run import (
    Comparison,
    LatencyPlan,
    LatencyReport,
    VariantResult,
    assert_faster,
    dataset_observations,
    measure_latency,
    run_latency,
    sample_observations,
)
from rfedge.contract import policy_contract
from rfedge.errors import ArtifactError, ConfigError, DatasetError, GateError
from rfedge.messages import Observation
from rfedge.records.machine import describe_machine, peak_rss_bytes
from rfedge.records.statistics import Ratio, ratio_of_medians, summarise
from rfedge.runtimes import STAGES, PolicyStep, RuntimeSettings
from tests.errors import raises
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle

SETTINGS = RuntimeSettings(threads=1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    config = tiny_config(chunk_size=2)
    write_handmade_bundle(root / "a", config)
    write_handmade_bundle(root / "b", config, requested="int8", blocks={"vision": "int8", "head": "fp32"})
    return root


@pytest.fixture(scope="module")
def report(bundles: Path) -> LatencyReport:
    plan = LatencyPlan(
        bundles=(bundles / "a", bundles / "b", bundles / "a"),
        execute_steps=2,
        warmup=1,
        iterations=30,
        settle_ms=0,
        settings=SETTINGS,
    )
    return run_latency(plan)


def test_summary_uses_real_samples() -> None:
    summary = summarise(np.arange(1.0, 11.0))
    assert summary.model_dump() == {"n": 10, "mean": 5.5, "p50": 6.0, "p90": 10.0, "p99": 10.0, "max": 10.0}
    assert summary.divided(2).model_dump() == {"n": 10, "mean": 2.75, "p50": 3.0, "p90": 5.0, "p99": 5.0, "max": 5.0}


def test_paired_bootstrap_cancels_common_drift() -> None:
    rng = np.random.default_rng(0)
    drift = np.repeat([1.0, 3.0], 100)  # the machine becomes three times slower halfway
    slow, fast = (20 * drift * rng.normal(1, 0.01, 200), 10 * drift * rng.normal(1, 0.01, 200))
    ratio = ratio_of_medians(slow, fast, seed=0)
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(2.0, rel=0.05)
    assert ratio == ratio_of_medians(slow, fast, seed=0)


class Recorder:
    """A policy that only writes down who was called with what."""

    def __init__(self, name: str, calls: list[tuple[str, int]]) -> None:
        self.name, self.calls = name, calls

    def reset(self, instruction: str) -> None:
        self.calls.append((f"reset {self.name}", 0))

    def act(self, observation: Observation) -> PolicyStep:
        assert not gc.isenabled()
        self.calls.append((self.name, id(observation)))
        return PolicyStep(actions=np.zeros((1, 7), dtype=np.float32), timings_ms=dict.fromkeys(STAGES, 1.0))


def test_calls_are_interleaved_shuffled_and_share_inputs() -> None:
    calls: list[tuple[str, int]] = []
    policies = {name: Recorder(name, calls) for name in "xyz"}
    frames = sample_observations(policy_contract(tiny_config()), 4, seed=0)
    rounds: list[tuple[int, int]] = []
    samples = measure_latency(
        policies,  # type: ignore[arg-type]
        frames,
        "go",
        warmup=3,
        iterations=20,
        seed=0,
        on_round=lambda done, total: rounds.append((done, total)),
    )
    assert gc.isenabled()
    assert rounds == [(index + 1, 23) for index in range(23)]
    assert calls[:3] == [("reset x", 0), ("reset y", 0), ("reset z", 0)]
    by_round = [calls[3 + 3 * index : 6 + 3 * index] for index in range(23)]
    orders = set()
    for called in by_round:
        assert sorted(name for name, _ in called) == ["x", "y", "z"]
        assert len({frame for _, frame in called}) == 1
        orders.add("".join(name for name, _ in called))
    assert len(orders) > 3
    assert samples["x"]["total"].shape == (20,)


def test_observations_are_seeded() -> None:
    contract = policy_contract(tiny_config())
    first, again = (sample_observations(contract, 2, seed=5) for _ in range(2))
    other = sample_observations(contract, 2, seed=6)
    np.testing.assert_array_equal(first[1].static, again[1].static)
    assert not np.array_equal(first[0].static, first[1].static)
    assert not np.array_equal(first[0].static, other[0].static)
    first[0].check()


def test_report_is_complete_and_survives_json(report: LatencyReport) -> None:
    assert [(v.name, v.role) for v in report.variants] == [
        ("fp32", "bundle"),
        ("int8", "bundle"),
        ("fp32 (a)", "bundle"),
        ("fp32 (again)", "noise-floor"),
    ]
    assert report.conditions.warmup == 12, "raised to the window: the head is timed at its steady cost"
    for variant in report.variants:
        assert tuple(variant.per_call_ms) == STAGES
        assert variant.per_call_ms["total"].n == 30
        assert variant.per_control_step_ms["total"].p50 == variant.per_call_ms["total"].p50 / 2
        assert variant.size_bytes > 100_000
        assert variant.settings["threads"] == "1"
    pairs = {(c.variant, c.baseline) for c in report.comparisons if c.stage == "total"}
    assert pairs == {("int8", "fp32"), ("fp32 (a)", "fp32"), ("fp32", "fp32 (a)"), ("int8", "fp32 (a)")}
    assert report.noise_floor.low <= report.noise_floor.value <= report.noise_floor.high
    assert report.machine == describe_machine()
    assert report.versions["onnxruntime"]
    assert (report.peak_rss_bytes or 0) <= (peak_rss_bytes() or 0)
    assert LatencyReport.model_validate_json(report.model_dump_json()) == report
    document = json.loads(report.model_dump_json())
    assert (document["format"], document["schema_version"]) == ("rfedge-latency", 1)
    assert LatencyReport.model_json_schema()["properties"]["commit"]


def _staged(report: LatencyReport, *, fp32: Ratio, int8: Ratio, floor: Ratio) -> LatencyReport:
    """The measured report with a torch variant and with set ratios."""
    base = report.variants[0]
    variants: tuple[VariantResult, ...] = (
        base,
        report.variants[1],
        base.model_copy(update={"name": "torch fp32", "role": "torch"}),
        report.variants[3],
    )
    comparisons = (
        Comparison(variant="fp32", baseline="torch fp32", stage="total", speedup=fp32),
        Comparison(variant="int8", baseline="fp32", stage="total", speedup=int8),
    )
    return report.model_copy(update={"variants": variants, "comparisons": comparisons, "noise_floor": floor})


def test_gate_holds_the_order_against_the_noise_floor(report: LatencyReport) -> None:
    fast, floor = Ratio(value=1.7, low=1.6, high=1.8), Ratio(value=1.0, low=0.98, high=1.02)
    assert_faster(_staged(report, fp32=fast, int8=fast, floor=floor))
    for slow, wide in (
        (Ratio(value=0.9, low=0.8, high=0.95), floor),  # slower
        (Ratio(value=1.1, low=0.99, high=1.2), floor),  # the interval holds 1
        (Ratio(value=1.1, low=1.05, high=1.2), Ratio(value=1.0, low=0.98, high=1.15)),  # within the noise, above
        (Ratio(value=1.1, low=1.05, high=1.2), Ratio(value=1.0, low=0.87, high=1.02)),  # within the noise, below
    ):
        with raises(GateError, "speed of 'int8' over 'fp32'", got="x... [...]", expected="above x1..."):
            assert_faster(_staged(report, fp32=fast, int8=slow, floor=wide))
    with raises(ConfigError, "--assert-faster", got="no torch variant"):
        assert_faster(report)


def test_torch_joins_the_comparison(bundles: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from rfedge.language.tokenizer import InstructionTokenizer
    from rfedge.model import build_policy, save_checkpoint

    tokenizer = InstructionTokenizer.load(bundles / "a" / "tokenizer.json", 16)
    save_checkpoint(tmp_path / "c", build_policy(tiny_config(chunk_size=2), seed=0), tokenizer, {})
    plan = LatencyPlan(
        bundles=(bundles / "a", bundles / "b"), checkpoint=tmp_path / "c", iterations=3, settle_ms=0, settings=SETTINGS
    )
    report = run_latency(plan)
    assert [v.role for v in report.variants] == ["bundle", "bundle", "torch", "noise-floor"]
    pairs = {(c.variant, c.baseline) for c in report.comparisons}
    assert pairs == {("fp32", "torch fp32"), ("int8", "torch fp32"), ("int8", "fp32")}


def test_plans_that_measure_nothing_are_refused(bundles: Path) -> None:
    with raises(ConfigError, "iterations", got=0, expected="at least 1"):
        LatencyPlan(bundles=(bundles / "a",), iterations=0)
    with raises(ConfigError, "bundles", got=0):
        LatencyPlan(bundles=())
    with raises(ConfigError, "execute_steps", got=3, expected="1 to 2 (chunk_size)"):
        run_latency(LatencyPlan(bundles=(bundles / "a",), execute_steps=3, settings=SETTINGS))
    with raises(ArtifactError, got="no folder"):
        run_latency(LatencyPlan(bundles=(bundles / "none",), settings=SETTINGS))
    with raises(DatasetError, got="no folder"):
        dataset_observations(bundles / "none")


def test_a_profile_says_where_a_call_s_time_goes(bundles: Path) -> None:
    plan = LatencyPlan((bundles / "a",), warmup=1, iterations=1, settle_ms=0, profile=True)
    report = run_latency(plan)
    assert report.profiles is not None
    (profile,) = report.profiles
    assert profile.variant == report.variants[0].name
    kinds = {operator.kind for operator in profile.operators}
    assert {"MatMul", "Tanh", "LSTM"} <= kinds or {"Gemm", "LSTM"} <= kinds
    assert sum(operator.ms for operator in profile.operators) == pytest.approx(profile.ms)
    assert sum(block.ms for block in profile.blocks) == pytest.approx(profile.ms)
    assert sum(stage.ms for stage in profile.stages) == pytest.approx(profile.ms)
    assert {"head"} <= {block.name for block in profile.blocks}
    assert all(block.share is None or block.share > 0 for block in profile.blocks)
    assert LatencyReport.model_validate_json(report.model_dump_json()) == report
    assert "profiles" not in json.loads(run_latency(dataclasses.replace(plan, profile=False)).model_dump_json())
