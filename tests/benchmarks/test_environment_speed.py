"""`rfedge bench env`: what it reports, and its gate."""

import os
from pathlib import Path

import pytest
import typer

from rfedge.benchmarks.latency.environment_speed import (
    NUM_RESETS,
    WARMUP_ROUNDS,
    EnvironmentSpeedPlan,
    EnvironmentSpeedReport,
    assert_step_ms,
    run_environment_speed,
)
from rfedge.cli.bench.app import bench_app
from rfedge.envs.calvin.environment import PYTHON_VARIABLE
from rfedge.errors import BackendUnavailableError, ConfigError, GateError
from rfedge.records.statistics import Summary
from tests.envs.calvin_install import calvin_python
from tests.errors import raises

app = typer.Typer()
app.add_typer(bench_app, name="bench")


def _call(*arguments: object) -> None:
    app(args=["bench", "env", *map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def report() -> EnvironmentSpeedReport:
    pytest.importorskip("PIL")  # comes with the same extra as mujoco, which chooses its renderer when it is imported
    try:
        return run_environment_speed(EnvironmentSpeedPlan(steps=4))
    except BackendUnavailableError as error:
        pytest.skip(str(error))  # no OpenGL on this machine


def test_a_report_says_what_was_measured_on_what(report: EnvironmentSpeedReport) -> None:
    assert (report.environment, report.scene, report.steps, report.seed) == ("playtable", "D", 4, 0)
    assert report.renderer != "none"
    assert report.looks == "playtable"
    assert {name: summary.n for name, summary in report.per_call_ms.items()} == {
        **dict.fromkeys(("advance", "static", "gripper", "observe", "step"), 4),
        "reset": NUM_RESETS,
    }
    assert report.build_ms > 0.0
    assert report.per_call_ms["step"].p50 > report.per_call_ms["advance"].p50, "pictures are not free"
    assert report.versions["mujoco"]
    assert report.simulator_versions == {}
    assert EnvironmentSpeedReport.model_validate_json(report.model_dump_json()) == report


def test_every_round_is_told() -> None:
    told: list[tuple[int, int]] = []
    try:
        run_environment_speed(EnvironmentSpeedPlan(steps=2, scene="A"), on_round=lambda *round: told.append(round))
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    total = WARMUP_ROUNDS + 2 + NUM_RESETS
    assert told == [(done, total) for done in range(1, total + 1)]


def test_the_gate_compares_the_median_step(report: EnvironmentSpeedReport) -> None:
    step = Summary(n=4, mean=30.0, p50=12.0, p90=80.0, p99=80.0, max=80.0)
    measured = report.model_copy(update={"per_call_ms": report.per_call_ms | {"step": step}})
    assert_step_ms(measured, 12.5)
    with raises(GateError, got="12.0 ms (median)", expected="below 12 ms"):
        assert_step_ms(measured, 12.0)


def test_the_command_prints_a_table_and_one_document(
    report: EnvironmentSpeedReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "speed.json"
    with raises(GateError, expected="below 0.001 ms"):
        _call("--steps", 2, "--seed", 3, "--json", "--output", output, "--assert-step-ms", 0.001)
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    printed = EnvironmentSpeedReport.model_validate_json(line)
    assert printed == EnvironmentSpeedReport.model_validate_json(output.read_text())
    assert (printed.steps, printed.seed) == (2, 3)
    assert "per_call_ms observe p50 / p90 / p99" in err
    _call("--steps", 1, "--assert-step-ms", 60_000)
    assert "per_call_ms observe p50 / p90 / p99" in capsys.readouterr().out


def test_impossible_plans_are_refused() -> None:
    with raises(ConfigError, "steps", got=0):
        _call("--steps", 0)
    with raises(ConfigError, expected="...did you mean 'calvin'..."):
        _call("--env", "calvn")
    with raises(ConfigError, expected="one of A, B, C, D"):
        _call("--scene", "E")
    with raises(ConfigError, "renderer", got="'tiny' for playtable", expected="a choice for calvin"):
        _call("--renderer", "tiny")


def test_calvin_without_its_interpreter_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, os.fspath(tmp_path / "python"))
    with raises(BackendUnavailableError, remedy="...install_calvin.md..."):
        _call("--env", "calvin")


@pytest.mark.calvin
def test_calvin_reports_its_own_versions() -> None:
    calvin_python()
    report = run_environment_speed(EnvironmentSpeedPlan(env="calvin", renderer="tiny", steps=2))
    assert {"calvin_env", "pybullet"} <= set(report.simulator_versions)
    assert (report.renderer, report.looks) == ("tiny", "calvin")
