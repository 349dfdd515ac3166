"""The sweep: every combination is run or said to be impossible, and success meets the latency of its own bundle."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import typer

from rfedge.benchmarks.report.build import plot_record
from rfedge.benchmarks.success.run import run_success
from rfedge.benchmarks.success.sweep import SweepPlan, SweepReport, finish_sweep
from rfedge.cli.bench.app import bench_app
from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.io.plotting import check_matplotlib
from tests.benchmarks.joint_world import joint_chains
from tests.benchmarks.success_plans import plan_of, write_policy
from tests.errors import raises

CHAINS = joint_chains(6)
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None

app = typer.Typer()
app.add_typer(bench_app, name="bench")


def sweep_plan(bundles: tuple[Path, ...], **changes: object) -> SweepPlan:
    success = plan_of(bundles, execute_steps=(1, 2, 4, 8), labels=("every", "second"), **changes)
    return SweepPlan(success, iterations=5, warmup=1, settle_ms=0.0, latency_threads=1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return write_policy(folder / "every"), write_policy(folder / "second", seed=2, frame_stride=2)


@pytest.fixture(scope="module")
def swept(bundles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepReport]:
    folder, plan = tmp_path_factory.mktemp("sweep") / "run", sweep_plan(bundles)
    return folder, finish_sweep(plan, run_success(plan.success, CHAINS, folder), folder)


def test_every_combination_is_a_row_or_has_a_reason(swept: tuple[Path, SweepReport]) -> None:
    _, report = swept
    assert [(row.policy, row.execute_steps, row.kind) for row in report.success.rows] == [
        ("every", 1, "closed-loop"),
        ("every", 2, "open-loop"),
        ("every", 4, "open-loop"),
        ("second", 1, "other"),
        ("second", 2, "jump-step"),
        ("second", 4, "other"),
    ]
    assert [(item.policy, item.execute_steps) for item in report.success.not_possible] == [("every", 8), ("second", 8)]
    assert all("(chunk_size)" in item.reason for item in report.success.not_possible)


def test_success_meets_the_latency_of_its_own_bundle(swept: tuple[Path, SweepReport], bundles: tuple[Path, Path]) -> None:
    folder, report = swept
    variants = {variant.name: variant for variant in report.latency.variants}
    for row, joined in zip(report.success.rows, report.rows, strict=True):
        assert joined.row == row.name
        variant = variants[joined.variant]
        assert Path(variant.source).name == row.policy
        assert joined.per_call_ms == variant.per_call_ms["total"]
        assert joined.per_control_step_ms.p50 == pytest.approx(joined.per_call_ms.p50 / row.execute_steps)
        assert joined.jerk == row.jerk
        steps = row.chains.mean_solved_steps
        if steps is None:
            assert joined.completion_s is None
            continue
        assert joined.completion_s == pytest.approx(steps / 30)
        # A call that takes less than a control step costs nothing.
        waiting_s = max(0.0, joined.per_call_ms.p50 / 1000 - 1 / 30)
        assert joined.synchronous_completion_s == pytest.approx(steps / 30 + steps / row.execute_steps * waiting_s)
    assert any(joined.completion_s is not None for joined in report.rows)
    assert report == SweepReport.model_validate_json((folder / "sweep.json").read_bytes())
    assert {path.name for path in folder.iterdir()} == {"chains", "success.json", "latency.json", "sweep.json"}


def test_a_slow_policy_makes_the_robot_wait(swept: tuple[Path, SweepReport]) -> None:
    from rfedge.benchmarks.success.sweep import join

    _, report = swept
    slow = [
        variant.model_copy(update={"per_call_ms": {name: ms.divided(1 / 1000) for name, ms in variant.per_call_ms.items()}})
        for variant in report.latency.variants
    ]
    rows = join(report.success, report.latency.model_copy(update={"variants": tuple(slow)}))
    for row, joined in zip(report.success.rows, rows, strict=True):
        if joined.completion_s is not None and joined.synchronous_completion_s is not None:
            steps = row.chains.mean_solved_steps or 0.0
            # Of every k steps one lasts as long as the call.
            k, call_s = row.execute_steps, joined.per_call_ms.p50 / 1000
            assert call_s > 1 / 30
            assert joined.synchronous_completion_s == pytest.approx(steps / k * (call_s + (k - 1) / 30))


def test_a_second_call_times_nothing_again(swept: tuple[Path, SweepReport], bundles: tuple[Path, Path]) -> None:
    folder, report = swept
    plan, rounds = sweep_plan(bundles), list[tuple[int, int]]()
    again = finish_sweep(
        plan, run_success(plan.success, CHAINS, folder), folder, on_round=lambda *counts: rounds.append(counts)
    )
    assert rounds == []
    assert (again.success, again.latency, again.rows) == (report.success, report.latency, report.rows)
    other = SweepPlan(plan.success, iterations=6, warmup=0, settle_ms=0.0, latency_threads=1)
    assert finish_sweep(other, report.success).latency.conditions.iterations == 6


def test_a_timing_that_cannot_run_is_refused_before_the_rollouts(bundles: tuple[Path, Path]) -> None:
    with raises(ConfigError, "iterations", got=0):
        SweepPlan(plan_of(bundles), iterations=0)


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
def test_the_picture_is_drawn(swept: tuple[Path, SweepReport], tmp_path: Path) -> None:
    document = swept[1].model_dump(mode="json")
    plot_record("rfedge-sweep", document, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    plot_record("rfedge-sweep", document, tmp_path / "sweep.svg")
    text = (tmp_path / "sweep.svg").read_text()
    assert "<svg" in text
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["sweep.png", "sweep.svg"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with raises(BackendUnavailableError, "--plot", got="no matplotlib", expected="the 'plots' extra"):
        check_matplotlib("--plot")


@pytest.mark.skipif("MUJOCO_GL" not in os.environ, reason="cameras need a renderer: set MUJOCO_GL")
def test_the_command(bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*bundles, "--label", "every", "--label", "second", "--execute-steps", "2,8", "--num", 1, "--max-steps", 4]
    arguments += ["--iterations", 3, "--warmup", 0, "--settle-ms", 0, "--latency-threads", 1, "--output", tmp_path / "run"]
    app(args=["bench", "success", *map(str, arguments), "--json"], standalone_mode=False)
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    report = SweepReport.model_validate_json(line)
    assert [row.row for row in report.rows] == ["every k2 D evaluation", "second k2 D evaluation"]
    assert "asked for and not possible" in err
    assert "beside speed and size of the same bundle" in err
    assert (tmp_path / "run" / "sweep.png").exists() == HAS_MATPLOTLIB
    assert all(variant.load_rss_bytes > 100_000 for variant in report.latency.variants if variant.role == "bundle")
