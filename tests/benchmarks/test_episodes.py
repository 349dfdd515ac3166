"""Open-loop scores on recorded episodes: the numbers by another road, what is held out, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rfedge.benchmarks.success.episodes import EpisodesPlan, EpisodesReport, run_episodes
from rfedge.cli.app import app
from rfedge.data import CalvinDataset
from rfedge.data.collection.dataset_records import CALVIN_HZ
from rfedge.data.windows import split_segments
from rfedge.errors import ConfigError
from rfedge.messages import Observation
from rfedge.runtimes import EdgePolicy
from tests.benchmarks.success_plans import write_policy
from tests.benchmarks.test_sweep import HAS_MATPLOTLIB
from tests.errors import raises
from tests.synthetic_demonstrations import write_demonstrations


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data"), episodes_per_task=3, num_frames=10)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("bundles") / "policy")


def test_the_score_is_that_of_the_policys_own_answers(data: Path, bundle: Path) -> None:
    plan = EpisodesPlan((bundle,), data, validation_fraction=0.5, mode="open-loop", execute_steps=4)
    report, traces = run_episodes(plan)
    dataset = CalvinDataset.open(data)
    held_out = [dataset.segments[index] for index in split_segments(dataset, 0.5, 0)[1]]
    assert report.episodes == tuple((segment.start, segment.task, segment.instruction) for segment in held_out)
    errors, agreements = [], []
    with EdgePolicy.load(bundle) as policy:
        for number, segment in enumerate(held_out):
            state, answers, recorded = policy.initial_state(), [], []
            for step in range(segment.num_frames):
                frame = dataset.frame(segment.start + step)
                recorded.append(frame["rel_actions"])
                if step % 4 == 0:
                    seen = Observation(frame["rgb_static"], frame["rgb_gripper"], frame["robot_obs"])
                    result = policy.infer(seen, segment.instruction, state)
                    state = result.state
                answers.append(result.actions[step % 4])
            np.testing.assert_array_equal(traces.predicted[0][number], answers)
            np.testing.assert_array_equal(traces.recorded[number], recorded)
            difference = np.array(answers) - np.array(recorded)
            errors.append(np.abs(difference[:, :6]).mean())
            agreements.append((difference[:, 6] == 0).mean())
    (row,) = report.rows
    assert row.execute_steps == 4
    assert row.settings["int8_kernels"] == "exact"
    assert row.score.action_error.value == pytest.approx(np.mean(errors))
    assert row.score.gripper_agreement.value == pytest.approx(np.mean(agreements))
    assert row.score.action_error.value == pytest.approx(np.mean(row.score.axis_errors))


def test_the_mean_action_is_the_score_to_beat(data: Path, bundle: Path) -> None:
    """The synthetic actions move along y alone and close the gripper in the second half: half agree, 20 mm is a unit."""
    report, traces = run_episodes(EpisodesPlan((bundle,), data, validation_fraction=0.0))
    y = np.concatenate(traces.recorded)[:, 1]
    mean = report.mean_action
    assert mean.axis_errors == pytest.approx((0, np.abs(y - y.mean()).mean(), 0, 0, 0, 0))
    assert mean.position_error_mm.value == pytest.approx(20 * np.abs(y - y.mean()).mean())
    assert mean.gripper_agreement.value == pytest.approx(0.5)
    assert mean.num_gripper_changes == 0
    assert report.num_gripper_changes == len(report.episodes) == 6


def test_a_validation_split_is_measured_whole_and_in_place_of_training(data: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "validation").symlink_to(data / "training")
    (tmp_path / "training").symlink_to(data / "training")
    assert len(run_episodes(EpisodesPlan((bundle,), tmp_path))[0].episodes) == 6
    assert len(run_episodes(EpisodesPlan((bundle,), tmp_path, num_episodes=2))[0].episodes) == 2
    assert len(run_episodes(EpisodesPlan((bundle,), tmp_path, split="training"))[0].episodes) == 1


def test_data_of_another_rate_are_refused(data: Path, tmp_path: Path) -> None:
    slow = write_policy(tmp_path / "slow", control_hz=CALVIN_HZ / 2)
    with raises(ConfigError, "control rate of ...", got="30 Hz", expected="15 Hz, that of policy..."):
        run_episodes(EpisodesPlan((slow,), data))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
def test_the_command_prints_writes_and_draws(data: Path, bundle: Path, tmp_path: Path) -> None:
    picture, document = tmp_path / "actions.png", tmp_path / "episodes.json"
    words = ["bench", "episodes", str(bundle), str(bundle), "--data", str(data), "--plot", str(picture)]
    result = CliRunner().invoke(app, [*words, "--output", str(document), "--json"])
    assert result.exit_code == 0, result.output
    report = EpisodesReport.model_validate_json(document.read_text())
    assert json.loads(result.stdout) == json.loads(document.read_text())
    assert "gripper agreement" in result.stderr
    assert report.rows[0].score == report.rows[1].score
    assert picture.read_bytes().startswith(b"\x89PNG")
