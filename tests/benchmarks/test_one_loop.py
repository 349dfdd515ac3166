"""What measures success is what runs a robot: the same starts, the same loop, the same actions bit for bit."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from rfedge.cli.app import main
from rfedge.envs.playtable.environment import PlayTable
from rfedge.policies import JUMP_STEP

pytestmark = pytest.mark.skipif("MUJOCO_GL" not in os.environ, reason="cameras need a renderer: set MUJOCO_GL")
FEW_STEPS = 24


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[list[np.ndarray]]:
    """Every action that a PlayTable gets, a list for each state it is put into."""
    sent: list[list[np.ndarray]] = []
    restore, advance = PlayTable.restore, PlayTable.advance

    def restored(table: PlayTable, *states: np.ndarray) -> None:
        sent.append([])
        restore(table, *states)

    def advanced(table: PlayTable, action: np.ndarray) -> None:
        sent[-1].append(action.copy())
        advance(table, action)

    monkeypatch.setattr(PlayTable, "restore", restored)
    monkeypatch.setattr(PlayTable, "advance", advanced)
    return sent


def rfedge(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


def assert_filmed_as_measured(
    rollouts: list[list[np.ndarray]], task: str, starts: int, folder: Path, capsys: pytest.CaptureFixture[str], *limit: str
) -> None:
    tasks = ("--num", "0", "--single-tasks", str(starts), "--tasks", task)
    rfedge("bench", "success", JUMP_STEP, *tasks, *limit, "--output", str(folder / "success"))
    (path,) = (folder / "success").rglob("trials.jsonl")
    trials = [json.loads(line)["rollout"] for line in path.read_text().splitlines()[1:]]
    measured = rollouts[-starts:]
    assert [trial["num_steps"] for trial in trials] == [len(actions) for actions in measured]
    failed = next(index for index, trial in enumerate(trials) if not trial["success"])
    film = folder / "failed.gif"
    capsys.readouterr()
    seed = str(trials[failed]["seed"])
    rfedge("run", JUMP_STEP, "--task", task, "--seed", seed, *limit, "--video", str(film), "--json")
    assert film.is_file()
    *shown, stop = rollouts[-1]
    np.testing.assert_array_equal(np.stack(shown), np.stack(measured[failed]))
    assert not stop[:6].any(), "a run ends with zero motion"
    (episode,) = json.loads(capsys.readouterr().out)["episodes"]
    times = ("call_ms", "max_age_ms")
    assert {name: value for name, value in episode.items() if name not in times} == {
        name: value for name, value in trials[failed].items() if name not in times
    }
    assert episode["num_inferences"] == -(-episode["num_steps"] // 4), "both run it as it was trained"


def test_a_failed_start_is_filmed_as_it_was_measured(
    rollouts: list[list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_filmed_as_measured(rollouts, "lift_red_block_table", 2, tmp_path, capsys, "--max-steps", str(FEW_STEPS))


@pytest.mark.slow
def test_a_failed_start_is_filmed_as_it_was_measured_to_its_last_step(
    rollouts: list[list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_filmed_as_measured(rollouts, "rotate_blue_block_left", 2, tmp_path, capsys)
