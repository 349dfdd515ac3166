"""Random looks change the pictures and nothing else, and a seed decides them."""

from collections.abc import Iterator

import numpy as np
import pytest

from rfedge.benchmarks.success.demonstrations import record_episode
from rfedge.envs import make_environment
from rfedge.envs.experts import prepare_start
from rfedge.envs.interface import EnvironmentIdentity
from rfedge.envs.playtable.environment import PlayTable
from rfedge.envs.playtable.layout import Wood, find_layout
from rfedge.envs.playtable.looks import MATERIALS, paint_wood, plain_look, random_look
from rfedge.envs.playtable.robot import NEUTRAL_ROBOT_OBS
from rfedge.errors import ConfigError
from rfedge.runtimes.rollout.rollout_session import Simulator
from tests.errors import raises

SCENE = np.zeros(24)
SCENE[6:9], SCENE[12:15], SCENE[18:21] = (0.05, -0.12, 0.46), (0.2, -0.12, 0.46), (0.32, -0.12, 0.46)


@pytest.fixture(scope="module")
def table() -> Iterator[PlayTable]:
    with PlayTable("D", looks="random") as environment:
        yield environment


def pictures(table: PlayTable, *seed: int) -> tuple[np.ndarray, np.ndarray]:
    table.redress(seed)
    seen = table.reset(NEUTRAL_ROBOT_OBS, SCENE)
    return seen.static, seen.gripper


def test_the_seed_decides_the_pictures(table: PlayTable) -> None:
    first = pictures(table, 1)
    other = pictures(table, 2)
    again = pictures(table, 1)
    for one, two, three in zip(first, other, again, strict=True):
        assert np.abs(one.astype(int) - two).mean() > 5.0
        np.testing.assert_array_equal(one, three)
    with PlayTable("D", looks="random") as fresh:
        for one, two in zip(first, pictures(fresh, 1), strict=True):
            np.testing.assert_array_equal(one, two)


def test_states_do_not_depend_on_looks(table: PlayTable) -> None:
    rng = np.random.default_rng(0)
    actions = [np.append(rng.uniform(-1, 1, 6), rng.choice([-1.0, 1.0])) for _ in range(15)]
    ends = []
    with PlayTable("D", render=False) as plain:
        for world in (table, plain):
            world.redress((3,))
            world.restore(NEUTRAL_ROBOT_OBS, SCENE)
            for action in actions:
                world.advance(action)
            ends.append((world.robot_state(), world.scene_state()))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    np.testing.assert_array_equal(ends[0][1], ends[1][1])


def test_looks_that_are_not_random_stay_as_they_are() -> None:
    with PlayTable("D") as table:
        first, _ = pictures(table, 1)
        other, _ = pictures(table, 2)
    np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("seed", range(20))
def test_blocks_keep_the_colours_that_they_are_called_by(seed: int) -> None:
    colours = random_look(find_layout("A"), np.random.default_rng(seed)).materials
    assert colours.keys() == MATERIALS.keys()
    red, blue, pink = (colours[f"block_{name}"] for name in ("red", "blue", "pink"))
    assert red[0] > 0.7 > 0.2 > max(red[1:])
    assert blue[2] > 0.7 > 0.2 > max(blue[:2])
    assert pink[0] >= pink[2] > 0.7 > 0.2 > pink[1]


def test_cameras_move_by_a_pixel_at_most(table: PlayTable) -> None:
    """The middle of the table is seen where the plain static camera sees it."""
    model, data = table._model, table._data
    index = model.camera("static").id
    for seed in range(10):
        table.redress((seed,))
        table.restore(NEUTRAL_ROBOT_OBS, SCENE)
        seen = data.cam_xmat[index].reshape(3, 3).T @ (np.array([0.0, -0.03, 0.44]) - data.cam_xpos[index])
        pixel = 100.0 + 1143.0 * np.array([seen[0], -seen[1]]) / -seen[2]
        assert np.abs(pixel - plain_pixel()).max() < 2.0


def plain_pixel() -> np.ndarray:
    with PlayTable("D", render=False) as table:
        index = table._model.camera("static").id
        data = table._data
        seen = data.cam_xmat[index].reshape(3, 3).T @ (np.array([0.0, -0.03, 0.44]) - data.cam_xpos[index])
        return 100.0 + 1143.0 * np.array([seen[0], -seen[1]]) / -seen[2]


def test_wood_has_the_colour_and_spread_that_were_asked_for_and_no_seam() -> None:
    wood = Wood((0.6, 0.45, 0.3), 0.05)
    pixels = paint_wood(wood, np.random.default_rng(0)) / 255.0
    np.testing.assert_allclose(pixels.mean((0, 1)), wood.rgb, atol=0.005)
    np.testing.assert_allclose(pixels.std((0, 1)), wood.spread, atol=0.005)
    inner = np.abs(np.diff(pixels, axis=0)).mean()
    assert np.abs(pixels[0] - pixels[-1]).mean() < 2.0 * inner
    along = np.abs(np.diff(pixels, axis=1)).mean()
    assert along < 0.5 * inner, "the grain runs along the rows"


def test_every_scene_has_its_wood() -> None:
    means = {scene: np.mean(plain_look(find_layout(scene)).wood.rgb) for scene in "ABCD"}
    assert means["A"] < means["C"] < means["D"] < means["B"]


def test_an_episodes_looks_depend_on_task_and_seed_alone(table: PlayTable) -> None:
    used = record_episode("turn_on_led", seed=4, environment=table)
    other = record_episode("turn_on_led", seed=5, environment=table)
    with make_environment("playtable", looks="random", seed=9) as fresh:
        twin = record_episode("turn_on_led", seed=4, environment=fresh)
    for name, frames in used.frames.items():
        np.testing.assert_array_equal(frames, twin.frames[name])
    first, second = used.frames["rgb_static"][0].astype(int), other.frames["rgb_static"][0]
    assert np.abs(first - second).mean() > 5.0
    with make_environment("playtable", render=True) as plain:
        same = record_episode("turn_on_led", seed=4, environment=plain)
    np.testing.assert_array_equal(same.frames["robot_obs"], used.frames["robot_obs"])


def test_unknown_looks_are_refused() -> None:
    with raises(ConfigError, expected="one of playtable, random, calvin..."):
        make_environment("playtable", looks="randm")  # type: ignore[arg-type]


def test_a_start_that_is_measured_has_looks_of_its_own(table: PlayTable) -> None:
    seen = []
    for seed in (0, 1, 0):
        prepare_start("open_drawer", table, seed)
        seen.append(table.reset(NEUTRAL_ROBOT_OBS, SCENE).static)
    assert np.abs(seen[0].astype(int) - seen[1]).mean() > 5.0
    np.testing.assert_array_equal(seen[0], seen[2])


def test_a_measurement_opens_the_looks_it_names_and_says_so() -> None:
    with Simulator(looks="random", render=False).open() as environment:
        assert EnvironmentIdentity.of("playtable", environment) == EnvironmentIdentity("playtable", "none", "random")
    with raises(ConfigError, "renderer", got="'tiny' for playtable"):
        Simulator(renderer="tiny").open()
