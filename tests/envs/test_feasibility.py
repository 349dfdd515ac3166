"""What can follow: each precondition on a real table, and experts for everything that is called feasible."""

import numpy as np
import pytest

from rfedge.envs import TASKS, Environment, task_solved
from rfedge.envs.experts import EXPERT_TASKS, make_expert, prepare
from rfedge.envs.feasibility import feasible_tasks, gripped_blocks
from rfedge.errors import ConfigError
from tests.errors import raises


@pytest.mark.parametrize("task", EXPERT_TASKS)
def test_a_prepared_task_is_feasible(physics: Environment, task: str) -> None:
    found = 0
    for seed in range(3):
        prepare(task, physics, np.random.default_rng(seed))
        found += task in feasible_tasks(physics.info(), "D")
    assert found >= 2  # a start that leaves little room may be left out: feasible is meant to be on the safe side


def test_opposites_exclude_each_other(physics: Environment) -> None:
    pairs = [("open_drawer", "close_drawer"), ("move_slider_left", "move_slider_right")]
    pairs += [(f"turn_on_{light}", f"turn_off_{light}") for light in ("led", "lightbulb")]
    for first, second in pairs:
        for task, other in ((first, second), (second, first)):
            prepare(task, physics, np.random.default_rng(0))
            possible = feasible_tasks(physics.info(), "D")
            assert task in possible
            assert other not in possible


def test_only_placing_and_stacking_begin_with_a_held_block(physics: Environment) -> None:
    held = {"place_in_slider", "place_in_drawer", "stack_block"}
    prepare("place_in_drawer", physics, np.random.default_rng(1))
    with_block = set(feasible_tasks(physics.info(), "D"))
    assert "place_in_drawer" in with_block <= held
    assert len(gripped_blocks(physics.info())) == 1
    prepare("open_drawer", physics, np.random.default_rng(1))
    assert not held & set(feasible_tasks(physics.info(), "D"))
    assert gripped_blocks(physics.info()) == ()


def test_a_lift_needs_something_to_follow_it(physics: Environment) -> None:
    prepare("lift_red_block_table", physics, np.random.default_rng(0))
    info = physics.info()
    alone = ("lift_red_block_table", "turn_on_led", "turn_off_led")
    assert "lift_red_block_table" in feasible_tasks(info, "D", alone)
    assert "lift_red_block_table" not in feasible_tasks(info, "D", alone, with_sequel=True)
    assert "lift_red_block_table" in feasible_tasks(info, "D", (*alone, "place_in_slider"), with_sequel=True)


def test_order_and_names_are_those_asked_for(physics: Environment) -> None:
    prepare("open_drawer", physics, np.random.default_rng(0))
    assert feasible_tasks(physics.info(), "D", ("turn_on_led", "turn_off_led", "open_drawer"))[-1] == "open_drawer"
    with raises(ConfigError, expected="...did you mean 'open_drawer'..."):
        feasible_tasks(physics.info(), "D", ("open_drawr",))
    with raises(ConfigError, "scene"):
        feasible_tasks(physics.info(), "E")


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_experts_do_most_of_what_is_called_feasible(scene: str) -> None:
    from rfedge.envs import make_environment

    rng = np.random.default_rng(7)
    solved: list[bool] = []
    with make_environment("playtable", scene=scene, render=False) as environment:
        for start in rng.choice(TASKS, size=30):
            prepare(str(start), environment, rng)
            for _ in range(2):
                candidates = feasible_tasks(environment.info(), scene)
                if not candidates:
                    break
                task = str(rng.choice(candidates))
                expert, before = make_expert(task, scene, rng), environment.info()
                for _ in range(64):
                    environment.advance(expert.act(environment.robot_state(), environment.scene_state()))
                    if task_solved(task, before, environment.info()):
                        break
                solved.append(task_solved(task, before, environment.info()))
    assert np.mean(solved) > 0.8, f"{sum(solved)} of {len(solved)}"
