"""The parts below a measurement of success: sessions, starts, ratios, and workers that can be stopped."""

import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from rfedge.benchmarks.success.chains import ChainPlan
from rfedge.benchmarks.success.single_tasks import TrialRecord, run_trials
from rfedge.envs.experts import prepare_start
from rfedge.errors import ArtifactError, BackendUnavailableError, ConfigError
from rfedge.io.journal import write_line
from rfedge.jobs.processes import run_jobs
from rfedge.jobs.ray import RayWorkers
from rfedge.records.statistics import ratio_of_sums
from rfedge.runtimes.rollout.rollout_session import RolloutSetup, Simulator, close_session, expert_agent, open_session
from tests.benchmarks.joint_world import JointSimulator, LuckyAgent
from tests.errors import raises


def test_the_ratio_of_sums_keeps_pairs_together() -> None:
    values = np.random.default_rng(0).integers(1, 6, size=300).astype(float)
    same = ratio_of_sums(values * 0.5, values, seed=1)
    assert same.value == same.low == same.high == 0.5, "paired values that differ by a factor have no spread"
    other = ratio_of_sums(np.random.default_rng(1).permutation(values), values, seed=1)
    # By the delta method.
    half_width = 1.96 * np.sqrt(2) * values.std() / values.mean() / np.sqrt(len(values))
    assert other.high - other.low == pytest.approx(2 * half_width, rel=0.15)
    assert ratio_of_sums(values, values * 0, seed=1) is None
    rare = ratio_of_sums(np.ones(50), np.eye(50)[0], seed=1)
    assert rare.value == 50.0
    assert np.isfinite([rare.low, rare.high]).all(), "draws without a success of the reference are left out"


def test_a_process_keeps_one_session_and_closes_it() -> None:
    first, second = (RolloutSetup(LuckyAgent, JointSimulator(), steps) for steps in (8, 9))  # type: ignore[arg-type]
    session = open_session(first)
    world = session.environment
    assert open_session(first) is session
    assert open_session(second) is not session
    assert world.is_closed  # type: ignore[attr-defined]
    close_session()
    assert open_session(first) is not session
    close_session()


def test_single_tasks_begin_where_the_experts_begin(tmp_path: Path) -> None:
    plan = ChainPlan(expert_agent, "expert", world=Simulator(render=False), max_steps=200)
    tasks = ("turn_on_led", "open_drawer")
    told: list[tuple[int, int]] = []
    found = run_trials(plan, 2, tmp_path / "a", tasks=tasks, on_trial=lambda *counts: told.append(counts))
    assert [trial.key for trial in found] == [(task, start) for task in tasks for start in (0, 1)]
    assert all(trial.rollout.success for trial in found), "experts do these from their own starts"
    assert told == [(done, 4) for done in range(5)]
    with Simulator(render=False).open() as environment:
        states = []
        for start in (0, 1, 0):
            prepare_start("open_drawer", environment, start)
            states.append(np.concatenate([environment.robot_state(), environment.scene_state()]))
    np.testing.assert_array_equal(states[0], states[2])
    assert not np.array_equal(states[0], states[1])
    again: list[tuple[int, int]] = []
    assert run_trials(plan, 2, tmp_path / "a", tasks=tasks, on_trial=lambda *counts: again.append(counts)) == found
    assert again == [(4, 4)]
    with raises(ConfigError, "starts per task of the run in ...", got="1 fewer than are there", expected="as many or more"):
        run_trials(plan, 1, tmp_path / "a", tasks=tasks)
    grown = run_trials(plan, 3, tmp_path / "a", tasks=tasks)
    assert [trial.rollout.seed for trial in grown] == [0, 1, 2, 0, 1, 2]
    assert (*grown[:2], *grown[3:5]) == found
    journal = tmp_path / "a" / "trials.jsonl"
    journal.write_bytes(journal.read_bytes() + write_line({"start": 1}))
    with raises(ArtifactError, got="a record that is no start"):
        run_trials(plan, 3, tmp_path / "a", tasks=tasks)
    assert isinstance(found[0], TrialRecord)


def sleep_long(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_a_stop_does_not_wait_for_the_jobs_in_work() -> None:
    jobs = run_jobs(sleep_long, [0.0, 1000.0, 1000.0], workers=2)
    assert next(jobs) == (0.0, 0.0)
    children = psutil.Process().children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    jobs.close()  # type: ignore[attr-defined]
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with raises(BackendUnavailableError, "--ray", got="no ray", expected="the 'scale' extra"), RayWorkers("local", 2):
        pass
