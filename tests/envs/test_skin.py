"""PlayTable in CALVIN's meshes and textures: its pictures are CALVIN's, its physics is PlayTable's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rfedge.envs import Environment, make_environment
from rfedge.envs.experts import make_expert, prepare
from rfedge.envs.interface import Float64Array
from tests.envs.calvin_install import calvin_python
from tests.envs.test_environment_contract import NEUTRAL, SCENE

pytestmark = pytest.mark.calvin

TASKS = ("lift_red_block_table", "open_drawer", "push_blue_block_left", "turn_on_led", "place_in_slider")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    calvin_python()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.getbasetemp()


def episode(environment: Environment, task: str, num_steps: int) -> list[Float64Array]:
    rng = np.random.default_rng(1)
    prepare(task, environment, rng)
    expert = make_expert(task, environment.scene, rng)
    states = []
    for _ in range(num_steps):
        environment.advance(expert.act(environment.robot_state(), environment.scene_state()))
        states.append(np.concatenate([environment.robot_state(), environment.scene_state()]))
    return states


@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_pictures_are_those_of_calvin(cache: Path, scene: str) -> None:
    with make_environment("playtable", looks="calvin", scene=scene) as skin, make_environment("calvin", scene=scene) as real:
        for task in TASKS:
            state = episode(skin, task, 25)[-1]
            ours, theirs = (environment.reset(state[:15], state[15:]) for environment in (skin, real))
            for camera in ("static", "gripper"):
                difference = getattr(ours, camera).astype(int) - getattr(theirs, camera)
                assert np.abs(difference).mean() < 10.0, (task, camera)


def test_physics_does_not_depend_on_the_looks(cache: Path, playtable: Environment) -> None:
    with make_environment("playtable", looks="calvin") as skin:
        for task in TASKS:
            np.testing.assert_array_equal(episode(skin, task, 30), episode(playtable, task, 30))


def test_bulb_and_led_change_their_colour(cache: Path) -> None:
    states = {name: SCENE.copy() for name in ("off", "on")}
    states["off"][4:6], states["on"][4:6] = 0.0, 1.0
    with make_environment("playtable", looks="calvin") as skin:
        static = {name: skin.reset(NEUTRAL, state).static.astype(int) for name, state in states.items()}
    assert (static["off"][6, 159] > 150).all()
    assert static["on"][6, 159, :2].min() > 150
    assert static["on"][6, 159, 2] < 50
    assert tuple(static["on"][12, 75] > 150) == (False, True, False)


def test_the_compiled_model_is_kept_and_built_again_when_damaged(cache: Path) -> None:
    with make_environment("playtable", looks="calvin") as skin:
        first = skin.reset(NEUTRAL, SCENE)
    (path,) = cache.rglob("D-*.mjb")
    path.write_bytes(path.read_bytes()[:1000])
    stale = path.with_name("D-0.mjb")
    stale.touch()
    with make_environment("playtable", looks="calvin") as skin:
        again = skin.reset(NEUTRAL, SCENE)
    np.testing.assert_array_equal(first.static, again.static)
    assert path.stat().st_size > 1_000_000
    assert not stale.exists()
