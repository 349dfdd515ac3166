"""CALVIN's chains exactly, and the starts that their states stand for."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from rfedge.envs import TASKS, make_environment
from rfedge.envs.chains import (
    OFFICIAL_SHA256,
    Chain,
    SymbolicState,
    chains_sha256,
    condition_seed,
    initial_state,
    initial_states,
    make_chains,
    state_after,
)
from rfedge.errors import ConfigError
from tests.errors import raises

FIRST = Chain(
    SymbolicState(
        led=1,
        lightbulb=1,
        slider="left",
        drawer="open",
        red_block="slider_left",
        blue_block="table",
        pink_block="slider_right",
    ),
    ("rotate_blue_block_right", "move_slider_right", "lift_red_block_slider", "place_in_slider", "turn_off_lightbulb"),
)
# Task counts over the 1000 official chains.
COUNTS = {
    "place_in_slider": 398,
    "open_drawer": 379,
    "move_slider_right": 317,
    "move_slider_left": 284,
    "close_drawer": 250,
    "stack_block": 220,
    "place_in_drawer": 208,
    "lift_blue_block_table": 205,
    "lift_red_block_table": 199,
    "lift_pink_block_table": 187,
    "turn_on_lightbulb": 202,
    "turn_on_led": 195,
    "turn_off_led": 185,
    "turn_off_lightbulb": 171,
    "lift_red_block_slider": 157,
    "lift_pink_block_slider": 156,
    "lift_blue_block_slider": 151,
    "push_into_drawer": 138,
    "unstack_block": 81,
    "lift_blue_block_drawer": 23,
    "lift_red_block_drawer": 23,
    "lift_pink_block_drawer": 17,
}
CATEGORIES = [
    [task for task in TASKS if task.startswith(("rotate_", "push_")) and task != "push_into_drawer"],
    ["move_slider_left", "move_slider_right"],
    ["open_drawer", "close_drawer"],
    *([f"lift_{colour}_block_{place}" for colour in ("red", "blue", "pink")] for place in ("table", "slider", "drawer")),
    ["place_in_slider", "place_in_drawer"],
    ["turn_on_lightbulb", "turn_off_lightbulb", "turn_on_led", "turn_off_led"],
    ["push_into_drawer"],
    ["stack_block"],
    ["unstack_block"],
]


@pytest.fixture(scope="module")
def official() -> tuple[Chain, ...]:
    return make_chains()


def test_the_1000_chains_are_calvins(official: tuple[Chain, ...]) -> None:
    assert len(official) == 1000
    assert official[0] == FIRST
    assert chains_sha256(official) == OFFICIAL_SHA256
    counts = Counter(task for chain in official for task in chain.tasks)
    assert {task: counts[task] for task in COUNTS} == COUNTS
    rest = [counts[task] for task in TASKS if task not in COUNTS]
    assert (len(rest), min(rest), max(rest)) == (12, 57, 79)
    assert sum(counts.values()) == 5000


def test_each_chain_can_be_walked_and_mixes_categories(official: tuple[Chain, ...]) -> None:
    number = {task: index for index, tasks in enumerate(CATEGORIES) for task in tasks}
    assert set(number) == set(TASKS)
    for chain in official:
        state: SymbolicState | None = chain.state
        for task in chain.tasks:
            assert state is not None
            state = state_after(state, task)
        assert state is not None
        assert len({number[task] for task in chain.tasks}) == 5


@pytest.mark.parametrize("index", [3, 60, 130])
def test_the_draw_is_numpys_choice_without_replacement(official: tuple[Chain, ...], index: int) -> None:
    """Every draw of `choice`, one by one as CALVIN makes them, up to the first chain of a start state."""
    state = initial_states()[index]
    wanted = {chain.tasks for chain in official if chain.state == state}
    rng = np.random.RandomState(index)
    number = {task: place for place, tasks in enumerate(CATEGORIES) for task in tasks}
    names = np.array(TASKS)
    for _ in range(100_000):
        tasks = tuple(str(task) for task in rng.choice(names, 5, replace=False))
        after: SymbolicState | None = state
        for task in tasks:
            after = None if after is None else state_after(after, task)
        if after is not None and len({number[task] for task in tasks}) == 5:
            break
    assert tasks in wanted


def test_a_part_is_the_beginning_of_the_whole(official: tuple[Chain, ...]) -> None:
    told: list[tuple[int, int]] = []
    assert make_chains(7, on_progress=lambda done, total: told.append((done, total))) == official[:7]
    assert told == [(done, 7) for done in range(1, 8)]
    own = make_chains(10, of=10)
    assert {chain.state for chain in own} == set(initial_states()[:10])
    assert own != official[:10]


@pytest.mark.parametrize(("num", "of", "expected"), [(0, None, "at least 1"), (11, 10, "1 to 10")])
def test_numbers_out_of_range(num: int, of: int | None, expected: str) -> None:
    with raises(ConfigError, "number of chains", got=num, expected=expected):
        make_chains(num, of=of)


def test_initial_states() -> None:
    states = initial_states()
    assert len(set(states)) == 192
    for state in states:
        places = Counter((state.red_block, state.blue_block, state.pink_block))
        assert places["table"] in (1, 2)
        assert max(places["slider_left"], places["slider_right"]) <= 1
        assert state.grasped == 0
    assert dataclasses.astuple(states[0]) == (0, 0, "right", "closed", "table", "table", "slider_right", 0)


def test_what_tasks_need_and_change() -> None:
    start = SymbolicState(0, 0, "right", "closed", "table", "table", "slider_left")
    held = state_after(start, "lift_red_block_table")
    assert held == dataclasses.replace(start, red_block="grasped", grasped=1)
    assert state_after(start, "close_drawer") is None
    assert state_after(held, "open_drawer") is None, "the gripper is full"
    assert state_after(held, "place_in_drawer") is None, "the drawer is closed"
    assert state_after(held, "place_in_slider") == dataclasses.replace(start, red_block="slider_right")
    stacked = state_after(held, "stack_block")
    assert stacked == dataclasses.replace(start, red_block="stacked_top", blue_block="stacked_bottom")
    assert state_after(stacked, "unstack_block") == start
    assert state_after(start, "lift_pink_block_slider") == dataclasses.replace(start, pink_block="grasped", grasped=1)
    behind_door = dataclasses.replace(start, slider="left")
    assert state_after(behind_door, "lift_pink_block_slider") is None
    both = dataclasses.replace(start, red_block="grasped", pink_block="table", grasped=1)
    assert state_after(both, "stack_block") is None, "two blocks could be meant"
    alone = SymbolicState(0, 0, "right", "open", "table", "slider_right", "slider_left")
    assert state_after(alone, "push_into_drawer") == dataclasses.replace(alone, red_block="drawer")
    assert state_after(dataclasses.replace(start, drawer="open"), "push_into_drawer") is None, "two are on the table"
    with raises(ConfigError, expected="...did you mean 'open_drawer'..."):
        state_after(start, "open_draw")


# --- starts ---------------------------------------------------------------------------------------------------------
def test_the_start_of_the_first_chain_is_calvins() -> None:
    assert condition_seed(FIRST.state) == 2138410836
    robot_obs, scene_obs = initial_state(FIRST.state)
    expected = [0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963]
    expected += [-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0]
    np.testing.assert_array_equal(robot_obs, expected)
    red = [-0.240851662, 0.0924044687, 0.460990009, 0, 0, 1.885941]
    blue = [0.229995412, -0.11999514, 0.45999001, 0, 0, 1.488143]
    pink = [0.070341633, 0.0924044687, 0.460990009, 0, 0, 1.468399]
    np.testing.assert_allclose(scene_obs, [0.28, 0.22, 0, 0.088, 1, 1, *red, *blue, *pink], atol=5e-7)


@pytest.mark.parametrize(("scene", "slide_m", "order"), [("A", 0.28, "pbr"), ("B", 0.304, "rbp"), ("C", 0.24, "brp")])
def test_other_scenes_have_their_own_door_and_order(scene: str, slide_m: float, order: str) -> None:
    _, in_d = initial_state(FIRST.state)
    _, scene_obs = initial_state(FIRST.state, scene)
    assert scene_obs[0] == slide_m
    np.testing.assert_array_equal(scene_obs[1:6], in_d[1:6])
    for place, colour in enumerate(order):
        original = in_d[6 + 6 * "rbp".index(colour) :][:6]
        np.testing.assert_array_equal(scene_obs[6 + 6 * place :][:6][1:], original[1:])


@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_blocks_lie_where_the_state_says(scene: str) -> None:
    links = {"table": "base_link", "slider_left": "plank_link", "slider_right": "plank_link"}
    with make_environment("playtable", scene=scene, render=False) as environment:
        for state in initial_states()[::7]:
            environment.restore(*initial_state(state, scene))
            info = environment.info()
            for colour in ("red", "blue", "pink"):
                block, place = info.blocks[f"block_{colour}"], getattr(state, f"{colour}_block")
                assert block.contacts == {("table", links[place])}, state
            assert info.lights == {"lightbulb": bool(state.lightbulb), "led": bool(state.led)}
            assert (info.doors["base__slide"] > 0.2) == (state.slider == "left")
            assert (info.doors["base__drawer"] > 0.2) == (state.drawer == "open")
            sides = {getattr(state, f"{c}_block"): info.blocks[f"block_{c}"].position_m[0] for c in ("red", "blue", "pink")}
            assert sides.get("slider_left", -1.0) < sides.get("slider_right", 1.0)


def test_two_blocks_on_the_table_never_share_a_spot_and_yaws_are_within_bounds() -> None:
    for state in initial_states():
        _, scene_obs = initial_state(state)
        blocks = scene_obs[6:].reshape(3, 6)
        assert len({tuple(block[:3]) for block in blocks}) == 3
        assert np.all((blocks[:, 5] >= 3 * math.pi / 8) & (blocks[:, 5] < 5 * math.pi / 8))


def test_starts_that_calvin_does_not_define() -> None:
    held = dataclasses.replace(FIRST.state, red_block="grasped")
    with raises(ConfigError, "place of a block", got="'grasped'", expected="one of table, slider_left, slider_right"):
        initial_state(held)
    with raises(ConfigError, "scene", got="'E'"):
        initial_state(FIRST.state, "E")
