"""The adapter against calvin_env itself: the same numbers, the same pictures, the same verdicts."""

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rfedge.envs import TASKS, make_environment, task_solved
from rfedge.envs.chains import SymbolicState, initial_state
from rfedge.envs.experts import make_expert
from rfedge.errors import BackendUnavailableError
from tests.envs.calvin_install import calvin_python
from tests.envs.test_environment_contract import NEUTRAL, SCENE, action
from tests.errors import raises

pytestmark = pytest.mark.calvin


@pytest.fixture(scope="module")
def python() -> str:
    return calvin_python()


def official(python: str, folder: Path, cameras: str, **request: np.ndarray) -> dict[str, np.ndarray]:
    np.savez(folder / "request.npz", scene="D", cameras=cameras, **request)
    script = Path(__file__).parent / "official_calvin.py"
    command = [python, str(script), str(folder / "request.npz"), str(folder / "reply.npz")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr
    with np.load(folder / "reply.npz") as reply:
        return dict(reply)


def test_states_and_pictures_are_those_of_calvin_env_bit_for_bit(python: str, tmp_path: Path) -> None:
    """calvin_env draws with a segmentation mask, the adapter without."""
    rng = np.random.default_rng(0)
    actions = np.concatenate([rng.uniform(-1.0, 1.0, (2, 12, 6)), rng.choice([-1.0, 1.0], (2, 12, 1))], axis=2)
    starts = {"robot_obs": np.stack([NEUTRAL] * 2), "scene_obs": np.stack([SCENE] * 2)}
    reply = official(python, tmp_path, "static_and_gripper", actions=actions, **starts)
    with make_environment("calvin") as environment:
        index = 0
        for start in range(2):
            observation = environment.reset(NEUTRAL, SCENE)
            for step in range(13):
                np.testing.assert_array_equal(environment.scene_state(), reply["scene_obs"][index])
                np.testing.assert_array_equal(environment.robot_state()[:14], reply["robot_obs"][index, :14])
                if index > 0:  # the first picture of an EGL context is lit differently, and the adapter drops it
                    np.testing.assert_array_equal(observation.static, reply["rgb_static"][index])
                    np.testing.assert_array_equal(observation.gripper, reply["rgb_gripper"][index])
                index += 1
                if step < 12:
                    observation = environment.step(actions[start, step])


def test_a_chain_gets_the_verdicts_of_calvins_own_evaluation(python: str, tmp_path: Path) -> None:
    tasks = ("open_drawer", "move_slider_left", "turn_on_led", "push_red_block_right")
    robot_obs, scene_obs = initial_state(
        SymbolicState(0, 0, "right", "closed", "table", "slider_left", "slider_right", 0), "D"
    )
    num_steps, rng = 60, np.random.default_rng(0)
    actions, states, ours = np.empty((len(tasks), num_steps, 7)), [], np.empty((len(tasks), num_steps), dtype=bool)
    with make_environment("calvin", render=False) as environment:
        environment.restore(robot_obs, scene_obs)
        states.append(environment.scene_state())
        for row, task in enumerate(tasks):
            expert, start = make_expert(task, "D", rng), environment.info()
            for step in range(num_steps):
                actions[row, step] = expert.act(environment.robot_state(), environment.scene_state())
                environment.advance(actions[row, step])
                states.append(environment.scene_state())
                ours[row, step] = task_solved(task, start, environment.info())
    request = {"robot_obs": np.stack([robot_obs] * len(tasks)), "scene_obs": np.stack([scene_obs] * len(tasks))}
    reply = official(python, tmp_path, "no_cameras", actions=actions, tasks=np.array(tasks), **request)
    np.testing.assert_array_equal(states, reply["scene_obs"])
    np.testing.assert_array_equal(ours, reply["done"])
    assert ours.any(axis=1).all()


SPOTS = {
    "table": [(0.04, -0.12, 0.46), (0.17, -0.08, 0.46), (0.30, -0.12, 0.46)],
    "slider": [(-0.24, 0.09, 0.461), (0.07, 0.09, 0.461)],
    "drawer": [(0.10, -0.28, 0.362), (0.26, -0.28, 0.362)],
}


def random_moment(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Return robot_obs, scene_obs and the gripper command of a scene in which anything may lie anywhere."""
    robot_obs, scene_obs, gripper = NEUTRAL.copy(), np.zeros(24), 1.0
    scene_obs[:6] = rng.choice([0.0, 0.28]), 0.22, 0.0, rng.choice([0.0, 0.088]), 0.0, rng.integers(2)
    scene_obs[4] = scene_obs[3] > 0.0
    free = [spot for spots in SPOTS.values() for spot in spots]
    poses = scene_obs[6:].reshape(3, 6)
    first, *others = rng.permutation(3)
    is_gripped = bool(rng.integers(3) == 0)
    for block in (first, *others):
        spot = free.pop(rng.integers(len(free)))
        poses[block] = [*spot, 0.0, 0.0, rng.choice([-1.3, 0.0, 1.3]) if spot in SPOTS["table"] else 1.57]
    if is_gripped:
        # Across its narrow side, which is 0.04 m for every block.
        poses[first] = [*NEUTRAL[:3], 0.0, 0.0, NEUTRAL[5] + 0.5 * np.pi]
        robot_obs[6], gripper = 0.04, -1.0
    elif rng.integers(3) == 0:
        poses[others[0]] = poses[first]
        poses[others[0], 2] += 0.04
    if not (poses[:, 1] < -0.2).any():
        scene_obs[1] = rng.choice([0.0, 0.22])  # the drawer is empty
    return robot_obs, scene_obs, gripper


def test_the_oracle_judges_as_calvins_own(python: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    moments = [random_moment(rng) for _ in range(80)]
    robot_obs, scene_obs = np.stack([moment[0] for moment in moments]), np.stack([moment[1] for moment in moments])
    actions = np.stack([np.stack([action(gripper=gripper)] * 4) for _, _, gripper in moments])
    reply = official(python, tmp_path, "no_cameras", robot_obs=robot_obs, scene_obs=scene_obs, actions=actions)
    infos = []
    with make_environment("calvin", render=False) as environment:
        for moment in range(len(moments)):
            environment.restore(robot_obs[moment], scene_obs[moment])
            for step in actions[moment]:
                environment.advance(step)
            infos.append(environment.info())
            np.testing.assert_array_equal(environment.scene_state(), reply["scene_obs"][5 * moment + 4])
    assert list(reply["tasks"]) == list(TASKS)
    ours = np.array([[[task_solved(task, start, end) for task in TASKS] for end in infos] for start in infos])
    counts = dict(zip(TASKS, reply["verdicts"].sum(axis=(0, 1)).tolist(), strict=True))
    assert all(counts.values()), f"some task is never done, which proves nothing about it: {counts}"
    wrong = [(int(i), int(j), TASKS[k]) for i, j, k in np.argwhere(ours != reply["verdicts"])]
    assert not wrong


def test_a_fresh_environment_repeats_bit_for_bit(python: str) -> None:
    def run() -> bytes:
        rng = np.random.default_rng(3)
        with make_environment("calvin", seed=11, render=False) as environment:
            for _ in range(40):
                environment.advance(np.append(rng.uniform(-1.0, 1.0, 6), rng.choice([-1.0, 1.0])))
            return environment.robot_state().tobytes() + environment.scene_state().tobytes()

    assert run() == run()


def test_both_renderers_draw_the_same_scene_differently(python: str) -> None:
    pictures = {}
    for renderer in ("egl", "tiny"):
        with make_environment("calvin", renderer=renderer) as environment:
            assert environment.renderer.split(" ")[0] == renderer
            pictures[renderer] = environment.reset(NEUTRAL, SCENE).static.astype(float)
    difference = np.abs(pictures["egl"] - pictures["tiny"]).mean()
    assert 5.0 < difference < 60.0
    # Yet both show the same things in the same places.
    correlation = np.corrcoef(pictures["egl"].ravel(), pictures["tiny"].ravel())[0, 1]
    assert correlation > 0.7


def test_a_simulator_that_is_killed_is_one_error_and_stays_closed(python: str) -> None:
    with make_environment("calvin", render=False) as environment:
        os.kill(environment._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with raises(BackendUnavailableError, got="...SIGKILL..."):
            environment.advance(action())
        with raises(BackendUnavailableError, got="a closed one"):
            environment.info()
