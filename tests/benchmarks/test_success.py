"""Success of compiled policies: what rows add up to, how they are paired, and that neither kills nor processes show."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import typer

from rfedge.benchmarks.success.chains import read_chains, run_chains
from rfedge.benchmarks.success.report import SuccessReport, SuccessRow, assert_average_length, assert_share
from rfedge.benchmarks.success.run import run_success
from rfedge.benchmarks.success.sweep import SweepReport
from rfedge.bundle.artifact import load_bundle
from rfedge.cli.bench.app import bench_app
from rfedge.config import preset
from rfedge.envs.language import ENRICHED_INSTRUCTIONS, choose_instruction
from rfedge.errors import BackendUnavailableError, ConfigError, ContractError, GateError
from rfedge.jobs.ray import RayWorkers
from rfedge.runtimes.policy.text import open_encoder
from rfedge.runtimes.rollout.rollout_session import Simulator
from tests.benchmarks.joint_world import JointWorld, joint_chains, lucky_plan
from tests.benchmarks.seen_world import SeenElsewhere
from tests.benchmarks.success_plans import plan_of, write_policy
from tests.errors import raises

ROOT = Path(__file__).parent.parent.parent
CHAINS = joint_chains(10)
TIMES = {"call_ms", "rollout_seconds", "num_workers"}

app = typer.Typer()
app.add_typer(bench_app, name="bench")


def bench_success(*arguments: object) -> None:
    app(args=["bench", "success", *(str(argument) for argument in arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return write_policy(folder / "float"), write_policy(folder / "integer", seed=0, requested="int8")


@pytest.fixture(scope="module")
def whole(bundles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SuccessReport]:
    folder = tmp_path_factory.mktemp("success") / "whole"
    return folder, run_success(plan_of(bundles), CHAINS, folder)


def results(report: SuccessReport) -> list[dict[str, object]]:
    """The rows without what depends on the machine."""
    return [row.model_dump(exclude=TIMES) for row in report.rows]


def test_every_bundle_is_run_with_every_number_of_steps(whole: tuple[Path, SuccessReport]) -> None:
    _, report = whole
    assert [row.name for row in report.rows] == [
        "fp32 k1 D evaluation",
        "fp32 k2 D evaluation",
        "int8 k1 D evaluation",
        "int8 k2 D evaluation",
    ]
    assert [(row.mode, row.kind) for row in report.rows] == [("closed-loop", "closed-loop"), ("open-loop", "open-loop")] * 2
    assert [policy.label for policy in report.policies] == ["fp32", "int8"]
    assert report.policies[1].provenance == {"made": "by hand"}
    assert report.policies[1].block_precisions == {"vision": "int8", "head": "fp32"}
    assert report.rows[3].policy == report.policies[1].label
    assert (report.conditions.num_chains, report.conditions.executor) == (10, "processes")
    assert report.not_possible == ()


def test_rows_add_up(whole: tuple[Path, SuccessReport]) -> None:
    folder, report = whole
    for row in report.rows:
        chains = read_chains(folder / "chains" / row.name.replace(" ", "-"))
        begun = [subtask for chain in chains for subtask in chain.subtasks]
        solved = [chain.num_solved for chain in chains]
        found = row.chains
        assert found.num_solved == tuple(solved)
        assert found.average_length.value == pytest.approx(np.mean(solved))
        assert [rate.successes for rate in found.success_rates.values()] == [
            sum(n >= i for n in solved) for i in range(1, 6)
        ]
        assert found.task_success.value == pytest.approx(sum(solved) / len(begun))
        assert found.task_success.low <= found.task_success.value <= found.task_success.high
        assert sum(score.success.n for score in found.tasks.values()) == len(begun)
        assert row.num_control_steps == sum(subtask.num_steps for subtask in begun)
        # A call every `execute_steps` steps, begun anew with every task.
        assert row.num_inferences == sum(-(-subtask.num_steps // row.execute_steps) for subtask in begun)
        assert row.call_ms.n == row.num_inferences
        assert 0 < row.call_ms.p50 <= row.call_ms.p99
        squares = sum(subtask.jerk_square_sum for subtask in begun)
        count = sum(6 * (subtask.num_steps - 2) for subtask in begun if subtask.num_steps > 2)
        assert row.jerk == pytest.approx((squares / count) ** 0.5)
    lengths = {row.chains.average_length.value for row in report.rows if row.chains is not None}
    assert len(lengths) > 1, "rows that are all alike would prove little"
    assert json.loads((folder / "success.json").read_text())["format"] == "rfedge-success"


def test_rows_are_paired_chain_by_chain(whole: tuple[Path, SuccessReport]) -> None:
    _, report = whole
    reference = report.rows[0]
    assert reference.paired is None
    before = np.array(reference.chains.num_solved)
    assert before.sum() > 0
    for row in report.rows[1:]:
        assert row.paired.reference == reference.name
        now = np.array(row.chains.num_solved)
        difference, share = row.paired.average_length_difference, row.paired.average_length_share
        assert difference.value == pytest.approx((now - before).mean())
        assert difference.low <= difference.value <= difference.high
        assert share.value == pytest.approx(now.sum() / before.sum())
        assert share.low <= share.value <= share.high
        assert row.paired.single_task_share is None


def test_two_workers_give_the_same_result(whole: tuple[Path, SuccessReport], bundles: tuple[Path, Path]) -> None:
    report = run_success(plan_of(bundles, execute_steps=(2,)), CHAINS, workers=2)
    rows = [row for row in whole[1].rows if row.execute_steps == 2]
    assert [row.chains for row in report.rows] == [row.chains for row in rows]
    assert [row.jerk for row in report.rows] == [row.jerk for row in rows]
    assert {row.num_workers for row in report.rows} == {2}


def test_a_stopped_measurement_goes_on_and_ends_the_same(
    whole: tuple[Path, SuccessReport], bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "parts"

    def stop_at(limit: int) -> Callable[[int, int], None]:
        def told(done: int, total: int) -> None:
            assert total == 40
            if done >= limit:
                raise KeyboardInterrupt

        return told

    for limit in (3, 10, 24):
        with pytest.raises(KeyboardInterrupt):
            run_success(plan_of(bundles), CHAINS, folder, on_progress=stop_at(limit))
        assert not (folder / "success.json").exists()
    told: list[int] = []
    report = run_success(plan_of(bundles), CHAINS, folder, on_progress=lambda done, total: told.append(done))
    assert told[:3] == [10, 20, 24]
    assert told[-1] == 40
    assert results(report) == results(whole[1])
    before = (folder / "success.json").read_bytes()
    assert run_success(plan_of(bundles), CHAINS, folder) == report, "a finished measurement keeps its report"
    assert (folder / "success.json").read_bytes() == before
    longer = run_success(plan_of(bundles, execute_steps=(1, 2, 4)), CHAINS, folder)
    assert [row for row in results(longer) if row["execute_steps"] != 4] == results(whole[1]), "a row more costs that row"


def test_rows_of_another_renderer_are_refused(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_success(plan_of(bundles[:1], execute_steps=(1,)), CHAINS[:2], folder)
    before = (folder / "success.json").read_bytes()
    elsewhere = plan_of(bundles[:1], execute_steps=(1, 2), worlds=(SeenElsewhere(),))
    with raises(ConfigError, "environment", got="name seen joints, renderer osmesa, looks joints"):
        run_success(elsewhere, CHAINS[:2], folder)
    assert (folder / "success.json").read_bytes() == before
    assert [path.name for path in (folder / "chains").iterdir()] == ["fp32-k1-D-evaluation"]


def test_another_measurement_in_the_folder_is_refused(
    whole: tuple[Path, SuccessReport], bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    before = (whole[0] / "success.json").read_bytes()
    with raises(ConfigError, "seed of the run in ...fp32-k1-D-evaluation", got=5, expected="0, with which it was started"):
        run_success(plan_of(bundles, seed=5), CHAINS, whole[0])
    with raises(ConfigError, "agent of the run in..."):
        run_success(plan_of(bundles[::-1], labels=("fp32", "int8")), CHAINS, whole[0])
    assert (whole[0] / "success.json").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with raises(ConfigError, got="something that is no measurement of success", expected="an empty or new folder"):
        run_success(plan_of(bundles), CHAINS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_enriched_rows_have_their_own_words_and_reference(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    plan = plan_of(bundles, execute_steps=(1,), languages=("evaluation", "enriched"), trained_on=("A,B,C", "D"))
    report = run_success(plan, CHAINS[:3], tmp_path / "run")
    assert [(row.language, row.paired and row.paired.reference) for row in report.rows] == [
        ("evaluation", None),
        ("evaluation", "fp32 k1 D evaluation"),
        ("enriched", None),
        ("enriched", "fp32 k1 D enriched"),
    ]
    told = [subtask for chain in read_chains(tmp_path / "run/chains/int8-k1-D-enriched") for subtask in chain.subtasks]
    assert all(subtask.instruction in ENRICHED_INSTRUCTIONS[subtask.task] for subtask in told)
    assert [policy.trained_on for policy in report.policies] == ["A,B,C", "D"]


def test_gates(whole: tuple[Path, SuccessReport]) -> None:
    _, report = whole
    lengths = {row.name: row.chains.average_length.value for row in report.rows if row.chains is not None}
    assert_average_length(report, min(lengths.values()))
    with raises(GateError, "average length of '...'", expected="at least 4.9"):
        assert_average_length(report, 4.9)
    shares = [row.paired.average_length_share for row in report.rows if row.paired is not None]
    worst = min(share.value for share in shares if share is not None)
    assert_share(report, worst)
    with raises(GateError, "share of 'fp32 k1 D evaluation' that remains in '...'", expected="at least 9"):
        assert_share(report, 9.0)
    unknown = [row.model_copy(update={"paired": row.paired and _without_share(row)}) for row in report.rows]
    with raises(GateError, got="a reference that solved nothing"):
        assert_share(report.model_copy(update={"rows": tuple(unknown)}), 0.0)


def test_what_one_bundle_does_not_know_is_told_to_none(tmp_path: Path) -> None:
    short = write_policy(tmp_path / "short", decoder=preset("tiny").decoder.model_dump() | {"text_length": 40})
    long = write_policy(tmp_path / "long")
    plan = plan_of((long, short), labels=("long", "short"), execute_steps=(1,), languages=("enriched",), max_steps=2)
    report = run_success(plan, CHAINS, tmp_path / "run")
    left_out = report.conditions.left_out_instructions
    every = [sentence for sentences in ENRICHED_INSTRUCTIONS.values() for sentence in sentences]
    assert 0 < len(left_out) < len(every)
    encode = open_encoder(load_bundle(short))
    for sentence in every:
        if sentence in left_out:
            with raises(ContractError, expected="at most 40"):
                encode(sentence)
        else:
            encode(sentence)
    folders = [tmp_path / "run" / "chains" / f"{label}-k1-D-enriched" for label in ("long", "short")]
    told = [[subtask.instruction for chain in read_chains(path) for subtask in chain.subtasks] for path in folders]
    assert told[0] == told[1]
    assert not set(told[0]) & set(left_out)
    with raises(ConfigError, "left out instructions of the run..."):
        run_success(dataclasses.replace(plan, left_out=frozenset({"another"})), CHAINS, tmp_path / "run")
    with raises(ConfigError, "held-out instructions of 'open_drawer'", got="none that the policy knows"):
        choose_instruction("open_drawer", "enriched", np.random.default_rng(0), set(every))


def _without_share(row: SuccessRow) -> object:
    return row.paired.model_copy(update={"average_length_share": None})


def test_single_tasks_of_policies_on_the_table(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    worlds = (SeeingTable(),)
    tasks = ("turn_on_led", "close_drawer", "open_drawer")
    plan = plan_of(bundles, execute_steps=(4,), worlds=worlds, starts_per_task=2, tasks=tasks, max_steps=8)
    report = run_success(plan, (), tmp_path / "run")
    assert report.conditions.chains_sha256 is None
    for row in report.rows:
        assert row.chains is None
        assert list(row.single_tasks.tasks) == ["open_drawer", "close_drawer", "turn_on_led"]
        assert {score.success.n for score in row.single_tasks.tasks.values()} == {2}
        assert row.single_tasks.success.n == 6
        assert row.single_tasks.failed_starts == dict.fromkeys(tasks, (0, 1))
        assert row.num_inferences == sum(-(-steps // 4) for steps in _steps(tmp_path / "run", row))
    paired = report.rows[1].paired
    assert paired.single_task_difference is not None
    assert paired.average_length_difference is None
    with raises(GateError, got="a reference that solved nothing"):
        assert_share(report, 0.5)


@dataclasses.dataclass(frozen=True)
class SeeingTable:
    """PlayTable without a renderer, seen in grey: what a policy sees is of no matter here."""

    name: str = "playtable"
    scene: str = "D"

    def open(self) -> object:
        table = Simulator(render=False).open()
        blank = JointWorld().observe()
        table.observe = lambda: blank  # type: ignore[method-assign]
        return table


def _steps(folder: Path, row: SuccessRow) -> list[int]:
    lines = (folder / "single-tasks" / row.name.replace(" ", "-") / "trials.jsonl").read_text().splitlines()[1:]
    return [json.loads(line)["rollout"]["num_steps"] for line in lines]


def test_the_command(tmp_path: Path, bundles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*bundles, "--num", 0, "--single-tasks", 1, "--tasks", "turn_on_led", "--max-steps", 3, "--workers", 1]
    with raises(ConfigError, "--execute-steps", got="'1;4'"):
        bench_success(*arguments, "--execute-steps", "1;4")
    with raises(ConfigError, "--ensemble", got="'nan'", expected="finite numbers or none"):
        bench_success(*arguments, "--ensemble", "nan,0")
    with raises(ConfigError, "scene", got="'E'"):
        bench_success(*arguments, "--scene", "E", "--output", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("MUJOCO_GL" not in os.environ, reason="cameras need a renderer: set MUJOCO_GL")
def test_the_command_prints_tables_and_one_document(
    tmp_path: Path, bundles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*bundles, "--execute-steps", "1,4", "--num", 1, "--max-steps", 4, "--output", tmp_path / "run"]
    arguments += ["--single-tasks", 1, "--tasks", "turn_on_led", "--label", "old", "--label", "new", "--trained-on", "A,B,C"]
    arguments += ["--iterations", 2, "--warmup", 0, "--settle-ms", 0]
    bench_success(*arguments, "--trained-on", "D", "--json")
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    report = SweepReport.model_validate_json(line).success
    assert report == SuccessReport.model_validate_json((tmp_path / "run" / "success.json").read_bytes())
    assert [row.name for row in report.rows] == [f"{label} k{k} D evaluation" for label in ("old", "new") for k in (1, 4)]
    assert "not possible" not in err
    assert "workers beside" in " ".join(err.split())
    with raises(GateError, "average length of 'old k1 D evaluation'"):
        bench_success(*arguments, "--trained-on", "D", "--assert-average-length", "0.5")
    assert "rfedge" not in capsys.readouterr().err, "the table comes before the gate"


SCRIPT = """
import pathlib, sys
from rfedge.benchmarks.success.run import run_success
from tests.benchmarks.success_plans import plan_of
from tests.benchmarks.test_success import CHAINS
if __name__ == "__main__":
    first, second, folder = map(pathlib.Path, sys.argv[1:])
    run_success(plan_of((first, second)), CHAINS, folder, workers=2)
"""


@pytest.mark.slow
def test_a_killed_measurement_is_finished_by_another(
    whole: tuple[Path, SuccessReport], bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "killed"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), *map(str, bundles), str(folder)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    journal = folder / "chains" / "fp32-k2-D-evaluation" / "chains.jsonl"
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        assert process.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert not (folder / "success.json").exists()
    assert results(run_success(plan_of(bundles), CHAINS, folder)) == results(whole[1])


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'rfedge[scale]'")
@pytest.mark.filterwarnings("default")  # of Ray's own libraries
def test_ray_gives_the_same_result(
    whole: tuple[Path, SuccessReport], bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with RayWorkers("local", 2) as cluster:
        report = run_success(plan_of(bundles), CHAINS, workers=2, runner=cluster, executor="ray")
        assert results(report) == results(whole[1])
        assert report.conditions.executor == "ray"
        with raises(ConfigError, got="'playtabel'", expected="...(did you mean 'playtable'?)"):  # raised in a task
            run_chains(lucky_plan(world=Simulator("playtabel")), CHAINS, tmp_path / "run", workers=2, runner=cluster)
    with raises(BackendUnavailableError, "--ray 127.0.0.1:1", expected="a Ray that answers"):
        RayWorkers("127.0.0.1:1", 1).__enter__()
