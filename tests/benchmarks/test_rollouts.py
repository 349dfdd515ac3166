from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.messages import Observation
from rfedge.runtimes import RuntimeSettings
from rfedge.runtimes.rollout import Goal
from rfedge.runtimes.rollout.plan import RolloutPlan
from rfedge.runtimes.rollout.rollout_session import choose_goal
from rfedge.runtimes.rollout.rollouts import RolloutReport, run_rollouts
from rfedge.runtimes.rollout.video import VideoRecorder
from tests.errors import raises

SETTINGS = RuntimeSettings(threads=1)


class BlankWorld:
    """Stands for a simulator: grey frames, nothing moves."""

    control_hz, renderer, looks, scene = 30, "none", "blank", "D"

    def __init__(self) -> None:
        self.num_restores = 0

    def __enter__(self) -> BlankWorld:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def restore(self) -> None:
        self.num_restores += 1

    def observe(self) -> Observation:
        return Observation(
            static=np.full((200, 200, 3), 90, dtype=np.uint8), gripper=np.full((84, 84, 3), 200, dtype=np.uint8)
        )

    def advance(self, action: np.ndarray) -> None:
        assert action.shape == (7,)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> BlankWorld:
    world = BlankWorld()
    monkeypatch.setattr(RolloutPlan, "open_environment", lambda *_, **__: world)
    return world


def test_goals_complete_each_other() -> None:
    assert choose_goal("open_drawer", None) == Goal("pull the handle to open the drawer", "open_drawer")
    assert choose_goal("open_drawer", "my words") == Goal("my words", "open_drawer")
    assert choose_goal(None, "Pull the handle to open the drawer ").task == "open_drawer"
    assert choose_goal(None, "open the drawer").task == "open_drawer"
    assert choose_goal(None, "make coffee") == Goal("make coffee", None)
    with raises(ConfigError, "goal", got="neither", expected="--task or --instruction"):
        choose_goal(None, None)
    with raises(ConfigError, "task", got="'open_drawr'", expected="... (did you mean 'open_drawer'?)"):
        choose_goal("open_drawr", None)


def test_report_without_a_judge(world: BlankWorld, bundle: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    plan = RolloutPlan(
        bundle=bundle,
        mode="open-loop",
        execute_steps=3,
        instruction="push the button",
        episodes=2,
        max_steps=7,
        seed=5,
        video=tmp_path / "out.gif",
        settings=SETTINGS,
    )
    report = run_rollouts(plan, on_step=lambda episode, step: steps.append((episode, step.index)))
    assert report.task is None
    assert [(e.seed, e.success, e.num_steps, e.num_inferences) for e in report.episodes] == [
        (5, None, 7, 3),
        (6, None, 7, 3),
    ]
    assert steps == [(episode, step) for episode in range(2) for step in range(7)]
    assert world.num_restores == 2
    assert report.execute_steps == 3
    total = report.per_call_ms["total"]
    assert total.n == 6
    assert report.mean_per_control_step_ms["total"] == pytest.approx(total.mean * 6 / 14)
    assert RolloutReport.model_validate_json(report.model_dump_json()) == report
    image = pytest.importorskip("PIL.Image")
    with image.open(tmp_path / "out.gif") as film:
        assert film.size == (368, 200)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gif"]


def test_open_loop_plays_the_whole_chunk_by_default(world: BlankWorld, bundle: Path) -> None:
    report = run_rollouts(
        RolloutPlan(bundle=bundle, mode="open-loop", instruction="push the button", max_steps=8, settings=SETTINGS)
    )
    assert (report.execute_steps, report.episodes[0].num_inferences) == (4, 2)


def test_films_are_checked_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(ConfigError, "--video", got="'out.avi'", expected="one of .gif, .mp4 (did you mean '.gif'?)"):
        VideoRecorder(tmp_path / "out.avi", 30)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    remedy = "pip install imageio-ffmpeg, or write a .gif."
    with raises(BackendUnavailableError, "--video out.mp4", got="no module 'imageio_ffmpeg'", remedy=remedy):
        VideoRecorder(tmp_path / "out.mp4", 30)


def test_a_film_without_frames_is_not_written(tmp_path: Path) -> None:
    VideoRecorder(tmp_path / "out.gif", 30).write()
    assert not list(tmp_path.iterdir())


def test_gif_keeps_frames_and_rate(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    recorder = VideoRecorder(tmp_path / "out.gif", 30)
    for value in (0, 80, 160):
        recorder.add(
            Observation(
                static=np.full((200, 200, 3), value, dtype=np.uint8), gripper=np.full((84, 84, 3), 255, dtype=np.uint8)
            )
        )
    recorder.write()
    with image.open(tmp_path / "out.gif") as film:
        assert (film.n_frames, film.info["duration"]) == (3, 30)
        film.seek(1)
        pixels = np.asarray(film.convert("RGB"))
    assert abs(int(pixels[100, 50, 0]) - 80) < 3
    assert (pixels[100, 284].min(), pixels[2, 284].max()) == (255, 0)


def test_real_simulator_judges_a_task(bundle: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("mujoco") is None:  # not imported here: mujoco chooses its renderer at import
        pytest.skip("mujoco is not installed")
    plan = RolloutPlan(bundle=bundle, task="open_drawer", max_steps=4, settings=SETTINGS)
    try:
        report = run_rollouts(plan)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    assert [episode.success for episode in report.episodes] == [False]
    assert report.episodes[0].num_steps == 4
    assert report.renderer


def test_plan_refuses_nothing_to_do(bundle: Path) -> None:
    with raises(ConfigError, "max_steps", got=0, expected="at least 1", remedy="Raise --max-steps."):
        RolloutPlan(bundle=bundle, max_steps=0)


def test_late_steps_are_counted(world: BlankWorld, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rfedge.runtimes.rollout.rollouts.RateKeeper",
        lambda rate_hz: SimpleNamespace(wait=lambda: 0.01, overdue_s=lambda: 0.0, num_late=3, num_skipped=1),
    )
    plan = RolloutPlan(bundle=bundle, instruction="push the button", max_steps=3, realtime=True, settings=SETTINGS)
    (episode,) = run_rollouts(plan).episodes
    assert (episode.num_late, episode.num_skipped, episode.max_lag_s) == (3, 1, 0.01)
