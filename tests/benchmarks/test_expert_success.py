"""The experts' measurement: counts, seeds, workers and its gate."""

import json

import pytest
from typer.testing import CliRunner

from rfedge.benchmarks.success.expert_success import (
    ExpertSuccessPlan,
    ExpertSuccessReport,
    ExpertTaskScore,
    assert_success,
    run_expert_success,
)
from rfedge.cli.app import app
from rfedge.envs.experts import EXPERT_TASKS
from rfedge.errors import ConfigError, GateError
from rfedge.records.statistics import proportion
from tests.errors import raises

TASKS = ("turn_on_led", "open_drawer")


@pytest.fixture(scope="module")
def report() -> ExpertSuccessReport:
    return run_expert_success(ExpertSuccessPlan(tasks=TASKS, episodes=3, seed=5))


def test_every_start_counts_once(report: ExpertSuccessReport) -> None:
    assert tuple(report.tasks) == TASKS
    for score in report.tasks.values():
        assert score.success.n == 3
        assert score.success.successes + len(score.failed_seeds) == 3
        assert score.within_window <= score.success.successes
    assert report.tasks["turn_on_led"].median_steps is not None


def test_a_limit_that_nobody_keeps_fails_every_seed() -> None:
    report = run_expert_success(ExpertSuccessPlan(tasks=("open_drawer",), episodes=2, seed=7, limit_steps=3))
    assert report.tasks["open_drawer"].failed_seeds == (7, 8)
    assert report.tasks["open_drawer"].median_steps is None
    with raises(GateError, got="0 of 1 tasks at 95%, open_drawer at 0%", expected="1 at 95% and every one at 80%"):
        assert_success(report)


def test_the_gate_asks_for_thirty_tasks_and_for_every_one(report: ExpertSuccessReport) -> None:
    def scores(rates: list[int]) -> ExpertSuccessReport:
        tasks = {
            task: ExpertTaskScore(success=proportion(rate, 20), within_window=0, median_steps=1.0, failed_seeds=())
            for task, rate in zip(EXPERT_TASKS, rates, strict=True)
        }
        return report.model_copy(update={"tasks": tasks})

    assert_success(scores([20] * 30 + [16] * 4))
    with raises(GateError, got="29 of 34 tasks at 95%..."):
        assert_success(scores([19] * 29 + [18] * 5))
    with raises(GateError, got="...push_into_drawer at 75%"):
        assert_success(scores([20] * 33 + [15]))


@pytest.mark.parametrize(
    ("options", "subject", "got"),
    [({"episodes": 0}, "episodes", 0), ({"tasks": ()}, "tasks", 0), ({"tasks": ("open_drawr",)}, "task", "'open_drawr'")],
)
def test_plans_that_run_nothing(options: dict[str, object], subject: str, got: object) -> None:
    with raises(ConfigError, subject, got=got):
        ExpertSuccessPlan(**options)  # type: ignore[arg-type]


def test_the_command_prints_the_same_as_json(report: ExpertSuccessReport) -> None:
    arguments = ["bench", "success", "--expert", "--tasks", ",".join(TASKS), "--single-tasks", "3", "--seed", "5", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["tasks"] == json.loads(report.model_dump_json())["tasks"]


@pytest.mark.slow
def test_two_workers_give_the_same(report: ExpertSuccessReport) -> None:
    assert run_expert_success(ExpertSuccessPlan(tasks=TASKS, episodes=3, seed=5), workers=2).tasks == report.tasks
