"""The long-horizon protocol: what counts, and that neither kills nor processes show in the result."""

import json
import math
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

from rfedge.benchmarks.success.chains import ChainPlan, ChainRecord, ChainReport, run_chains
from rfedge.envs.chains import Chain, initial_states
from rfedge.envs.interface import EnvironmentIdentity
from rfedge.envs.language import ENRICHED_INSTRUCTIONS
from rfedge.envs.tasks import INSTRUCTIONS
from rfedge.errors import ArtifactError, ConfigError
from rfedge.io.journal import read_journal, write_line
from rfedge.records.statistics import mean_with_interval, proportion
from rfedge.runtimes.control.limits import MAX_STEPS
from rfedge.runtimes.rollout.policy_source import PolicyLoop
from rfedge.runtimes.rollout.rollout_session import RolloutSession, RolloutSetup, Simulator, Subtask, expert_agent
from tests.benchmarks.joint_world import JointSimulator, JointWorld, LuckyAgent, RenderedElsewhere, joint_chains, lucky_plan
from tests.errors import raises
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle

ROOT = Path(__file__).parent.parent.parent


def records(folder: Path) -> list[ChainRecord]:
    """The chains in order, without their times."""
    lines = read_journal(folder / "chains.jsonl")
    for line in lines:
        line["duration_s"] = 0.0
        for subtask in line["subtasks"]:
            subtask["max_age_ms"] = 0.0
    found = [ChainRecord.model_validate(line) for line in lines]
    assert len({record.index for record in found}) == len(found)
    return sorted(found, key=lambda record: record.index)


def assert_same(folder: Path, other: Path) -> None:
    assert records(folder) == records(other)
    assert (folder / "results.json").read_bytes() == (other / "results.json").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ChainReport]:
    """Forty chains at once."""
    folder = tmp_path_factory.mktemp("chains") / "whole"
    return folder, run_chains(lucky_plan(), joint_chains(40), folder)


def test_a_chain_ends_with_its_first_failure(whole: tuple[Path, ChainReport]) -> None:
    folder, _ = whole
    lengths = set()
    for record, chain in zip(records(folder), joint_chains(40), strict=True):
        assert record.tasks == chain.tasks
        assert record.state["drawer"] == "closed"
        assert [subtask.task for subtask in record.subtasks] == list(chain.tasks[: len(record.subtasks)])
        assert [subtask.success for subtask in record.subtasks[:-1]] == [True] * (len(record.subtasks) - 1)
        assert record.num_solved == sum(subtask.success for subtask in record.subtasks)
        for subtask in record.subtasks:
            assert subtask.num_steps <= 20 if subtask.success else subtask.num_steps == 40
        lengths.add(record.num_solved)
    assert lengths == {0, 1, 2, 3, 4, 5}


def test_the_report_adds_up(whole: tuple[Path, ChainReport]) -> None:
    folder, report = whole
    found = records(folder)
    solved = np.array([record.num_solved for record in found])
    assert report.average_length.value == pytest.approx(solved.mean())
    assert report.average_length.low < solved.mean() < report.average_length.high
    assert {length: rate.successes for length, rate in report.success_rates.items()} == {
        str(length): int((solved >= length).sum()) for length in range(1, 6)
    }
    begun = [subtask for record in found for subtask in record.subtasks]
    assert sum(score.success.n for score in report.tasks.values()) == len(begun)
    assert sum(score.success.successes for score in report.tasks.values()) == solved.sum()
    assert report.mean_solved_steps == pytest.approx(np.mean([s.num_steps for s in begun if s.success]))
    assert report.conditions.num_chains == 40
    assert report.conditions.agent == {"name": "lucky"}
    assert (report.renderer, report.num_workers, report.num_resumed) == ("none", 1, 0)
    assert report == ChainReport.model_validate_json((folder / "report.json").read_bytes())


def test_results_json_is_calvins(whole: tuple[Path, ChainReport]) -> None:
    folder, _ = whole
    document = json.loads((folder / "results.json").read_bytes())
    assert list(document) == ["lucky"]
    data = document["lucky"]
    assert list(data) == ["avg_seq_len", "chain_sr", "task_info"]
    solved = [record.num_solved for record in records(folder)]
    assert data["avg_seq_len"] == pytest.approx(sum(solved) / 40)
    assert data["chain_sr"] == {str(i): sum(n >= i for n in solved) / 40 for i in range(1, 6)}
    # As CALVIN counts: the solved tasks of a chain, and the one after them.
    success, total = dict.fromkeys(INSTRUCTIONS, 0), dict.fromkeys(INSTRUCTIONS, 0)
    for record in records(folder):
        for task in record.tasks[: record.num_solved]:
            success[task] += 1
        for task in record.tasks[: record.num_solved + 1]:
            total[task] += 1
    assert data["task_info"] == {t: {"success": success[t], "total": total[t]} for t in INSTRUCTIONS if total[t]}


def test_two_workers_give_the_same_result(whole: tuple[Path, ChainReport], tmp_path: Path) -> None:
    report = run_chains(lucky_plan(), joint_chains(40), tmp_path / "two", workers=2)
    assert_same(tmp_path / "two", whole[0])
    assert report.success_rates == whole[1].success_rates
    assert report.num_workers == 2


def test_a_stopped_run_goes_on_and_ends_the_same(whole: tuple[Path, ChainReport], tmp_path: Path) -> None:
    folder = tmp_path / "parts"

    def stop_after(limit: int) -> Callable[[int, int], None]:
        begun: list[int] = []

        def told(done: int, total: int) -> None:
            begun.append(done)
            if len(begun) > limit:
                raise KeyboardInterrupt

        return told

    for limit in (1, 4, 13):
        with pytest.raises(KeyboardInterrupt):
            run_chains(lucky_plan(), joint_chains(40), folder, on_chain=stop_after(limit))
        with (folder / "chains.jsonl").open("ab") as file:
            file.write(b'{"index": 39, "sta')  # what a kill can leave
        assert not (folder / "results.json").exists()
    told: list[tuple[int, int]] = []
    report = run_chains(lucky_plan(), joint_chains(40), folder, on_chain=lambda *counts: told.append(counts))
    assert told == [(done, 40) for done in range(18, 41)]
    assert report.num_resumed == 18
    assert_same(folder, whole[0])
    assert report.tasks == whole[1].tasks
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run_chains(lucky_plan(), joint_chains(40), folder) == report, "a finished run keeps its report"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


SCRIPT = """
import pathlib, sys
from rfedge.benchmarks.success.chains import run_chains
from tests.benchmarks.joint_world import joint_chains, lucky_plan
if __name__ == "__main__":
    run_chains(lucky_plan(), joint_chains(40), pathlib.Path(sys.argv[1]), workers=2)
"""


def test_a_killed_process_takes_its_workers_along_and_another_finishes(
    whole: tuple[Path, ChainReport], tmp_path: Path
) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "killed"
    script.write_text(SCRIPT)
    # With slow agents, so that there is something left to kill; what they do does not depend on it.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLOW_S": "0.003"}
    process = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
    journal = folder / "chains.jsonl"
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    num_done = journal.read_bytes().count(b"\n") - 1
    assert 5 <= num_done < 40
    report = run_chains(lucky_plan(), joint_chains(40), folder)
    assert report.num_resumed == num_done
    assert_same(folder, whole[0])


def test_other_arguments_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_chains(lucky_plan(), joint_chains(3), folder)
    before = (folder / "chains.jsonl").read_bytes()
    for changes, what, got, started in (
        ({"seed": 4}, "seed", 4, 3),
        ({"max_steps": 41}, "max steps", 41, 40),
        ({"language": "enriched"}, "language", "enriched", "evaluation"),
        ({"agent_facts": {"bundle": "abc"}}, "agent", "...'bundle': 'abc'}", "{'name': 'lucky'}"),
        ({"instructions": INSTRUCTIONS}, "instructions", INSTRUCTIONS, "..."),
    ):
        with raises(ConfigError, f"{what} of the run in {folder}", got=got, expected=f"{started}, with which it was..."):
            run_chains(lucky_plan(**changes), joint_chains(3), folder)
    with raises(ConfigError, "number of chains of the run in ...", got=2, expected="at least 3, which are there"):
        run_chains(lucky_plan(), joint_chains(2), folder)
    with raises(ConfigError, "chain 0 of the run in ...", expected="... from the same state, with which..."):
        run_chains(lucky_plan(), joint_chains(4)[1:], folder)
    assert (folder / "chains.jsonl").read_bytes() == before


def test_a_run_goes_on_in_its_own_environment_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_chains(lucky_plan(), joint_chains(3), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    there = "name joints, renderer none, looks joints, in which this run was begun"
    for workers in (1, 2):
        with raises(ConfigError, "environment", got="name joints, renderer osmesa, looks joints", expected=there):
            run_chains(lucky_plan(world=RenderedElsewhere()), joint_chains(5), folder, workers=workers)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    compared = lucky_plan(environment=EnvironmentIdentity("joints", "none", "calvin"))
    with raises(ConfigError, "environment", expected="name joints, renderer none, looks calvin..."):
        run_chains(compared, joint_chains(3), folder)


def test_a_run_goes_on_with_more_chains_as_if_it_had_been_asked_for_them(tmp_path: Path) -> None:
    few, more = tmp_path / "few", tmp_path / "more"
    first = run_chains(lucky_plan(), joint_chains(3), few)
    assert first.conditions.num_chains == 3
    grown = run_chains(lucky_plan(), joint_chains(5), few)
    whole = run_chains(lucky_plan(), joint_chains(5), more)
    assert (grown.num_resumed, whole.num_resumed) == (3, 0)
    assert grown.conditions == whole.conditions
    assert_same(few, more)


def test_a_line_that_is_no_chain_is_named(tmp_path: Path) -> None:
    run_chains(lucky_plan(), joint_chains(2), tmp_path / "run")
    journal = tmp_path / "run" / "chains.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + write_line({"index": 0}))
    with raises(ArtifactError, "...chains.jsonl", got="a record that is no chain"):
        run_chains(lucky_plan(), joint_chains(2), tmp_path / "run")


def test_without_an_output_there_is_a_report_alone(whole: tuple[Path, ChainReport]) -> None:
    assert run_chains(lucky_plan(), joint_chains(40)).tasks == whole[1].tasks


@pytest.mark.parametrize(
    ("changes", "subject", "got"),
    [
        ({"language": "enrichd"}, "language", "'enrichd'"),
        ({"max_steps": 0}, "max_steps", 0),
        ({"seed": -1}, "seed", -1),
        ({"instructions": {"open_drawer": "open it"}}, "instruction", "none for 'move_slider_left'"),
    ],
)
def test_plans_that_cannot_run(changes: dict[str, object], subject: str, got: object) -> None:
    with raises(ConfigError, subject, got=got):
        run_chains(lucky_plan(**changes), joint_chains(1))


def test_nothing_to_run() -> None:
    with raises(ConfigError, "number of chains", got=0):
        run_chains(lucky_plan(), ())
    with raises(ConfigError, "workers", got=0):
        run_chains(lucky_plan(), joint_chains(1), workers=0)


def test_a_world_that_cannot_open_leaves_nothing(tmp_path: Path) -> None:
    with raises(ConfigError, "environment", got="'playtabel'", expected="...did you mean 'playtable'..."):
        run_chains(lucky_plan(world=Simulator("playtabel")), joint_chains(1), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_an_agent_is_told() -> None:
    def subtasks(**changes: object) -> list[Subtask]:
        plan = lucky_plan(**changes)
        return [subtask for index, chain in enumerate(joint_chains(40)) for subtask in plan.subtasks(index, chain)]

    told = subtasks()
    assert [subtask.instruction for subtask in told] == [INSTRUCTIONS[subtask.task] for subtask in told]
    assert len({subtask.seed for subtask in told}) == 200
    assert told == subtasks()
    assert not {subtask.seed for subtask in told} & {subtask.seed for subtask in subtasks(seed=4)}
    enriched = subtasks(language="enriched")
    assert [subtask.seed for subtask in enriched] == [subtask.seed for subtask in told], "language changes words alone"
    assert all(subtask.instruction in ENRICHED_INSTRUCTIONS[subtask.task] for subtask in enriched)
    opened = {subtask.instruction for subtask in enriched if subtask.task == "open_drawer"}
    assert len(opened) > 5
    own = subtasks(language="mine", instructions={task: f"do {task}" for task in INSTRUCTIONS})
    assert {subtask.instruction for subtask in own} == {f"do {subtask.task}" for subtask in told}


def test_the_world_is_closed_and_the_agent_is_made_once() -> None:
    worlds: list[JointWorld] = []
    agents: list[LuckyAgent] = []

    class Recording(JointSimulator):
        def open(self) -> JointWorld:
            worlds.append(JointWorld())
            return worlds[-1]

    def make_agent() -> LuckyAgent:
        agents.append(LuckyAgent())
        return agents[-1]

    run_chains(lucky_plan(make_agent=make_agent, world=Recording()), joint_chains(3))
    assert [world.is_closed for world in worlds] == [True]
    assert len(agents) == 1
    assert len(agents[0].heard) >= 3


@pytest.mark.parametrize("mode", ["closed-loop", "open-loop"])
def test_a_policy_in_its_loop_is_an_agent(tmp_path: Path, mode: str) -> None:
    write_handmade_bundle(tmp_path / "b", tiny_config(chunk_size=4))
    world = JointWorld()

    class Kept(JointSimulator):
        def open(self) -> JointWorld:
            return world

    session = RolloutSession(RolloutSetup(PolicyLoop(tmp_path / "b", mode), Kept(), max_steps=6))  # type: ignore[arg-type]
    told = [Subtask("open the drawer", "close_drawer", 0), Subtask("push the button", "turn_off_led", 1)]
    jerks = []
    for subtask in (*told, told[0]):
        world.restore(np.zeros(15), np.zeros(24))
        record = session.roll_out(subtask)
        assert (record.task, record.instruction, record.success) == (subtask.task, subtask.instruction, False)
        assert (record.num_steps, record.num_inferences) == (6, 6 if mode == "closed-loop" else 2)
        jerks.append(record.jerk_square_sum)
    assert world.num_frames == 3 * (6 if mode == "closed-loop" else 2), "frames are rendered only for a policy call"
    assert jerks[0] == jerks[2] != jerks[1], "the instruction must reach the policy"


def test_experts_do_a_chain_on_the_table_and_again_alike(tmp_path: Path) -> None:
    state = initial_states()[2]
    assert (state.led, state.lightbulb, state.slider, state.drawer) == (0, 0, "right", "closed")
    chain = Chain(state, ("open_drawer", "turn_on_led", "move_slider_left", "turn_on_lightbulb", "close_drawer"))
    plan = ChainPlan(expert_agent, "expert", world=Simulator(render=False))
    assert plan.max_steps == MAX_STEPS == 360
    report = run_chains(plan, [chain, chain], tmp_path / "a")
    assert report.average_length.value == 5.0
    first, second = records(tmp_path / "a")
    steps = [[subtask.num_steps for subtask in record.subtasks] for record in (first, second)]
    assert steps[0] != steps[1], "another place in the set is another seed"
    run_chains(plan, [chain, chain], tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_wilsons_interval_against_known_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        interval = proportion(successes, n)
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
        assert interval.value == successes / n
    mirrored = proportion(20, 20)
    assert (mirrored.high, round(mirrored.low, 4)) == (1.0, 0.8389)
    assert math.isclose(proportion(1, 29).high, 0.1718, abs_tol=5e-5)


def test_bootstrap_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).integers(0, 6, size=400).astype(float)
    interval = mean_with_interval(values, seed=1)
    half_width = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.03)
    assert interval == mean_with_interval(values, seed=1)


def test_two_chains_that_end_alike_are_not_certain() -> None:
    none = mean_with_interval(np.zeros(2), seed=1, between=(0.0, 5.0))
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(5 * (1 - 0.025**0.5)), "4.2: two chains say little"
    every = mean_with_interval(np.full(100, 5.0), seed=1, between=(0.0, 5.0))
    assert every.high == 5.0
    assert every.low == pytest.approx(5 - 5 * (1 - 0.025**0.01))
