"""Every scripted expert does its task, from random starts and with valid actions."""

from __future__ import annotations

import numpy as np
import pytest

from rfedge.envs import Environment, TaskOracle
from rfedge.envs.experts import EXPERT_TASKS, make_expert, prepare, score_expert
from rfedge.errors import ConfigError

ORACLE = TaskOracle()


@pytest.mark.parametrize("task", EXPERT_TASKS)
def test_expert_does_its_task_in_scene_d(physics: Environment, task: str) -> None:
    assert score_expert(task, physics, seeds=[1], limit_steps=64).solved == 1


@pytest.mark.slow
@pytest.mark.parametrize("task", EXPERT_TASKS)
def test_expert_success_rate(physics: Environment, task: str) -> None:
    score = score_expert(task, physics, seeds=range(20))
    assert score.success_rate >= 0.95, f"steps: {score.steps}"
    assert score.median_steps <= 64


def test_preparation_does_not_solve_the_task(physics: Environment) -> None:
    for task in EXPERT_TASKS:
        prepare(task, physics, np.random.default_rng(2))
        start = physics.info()
        for _ in range(5):
            physics.advance(np.array([0, 0, 0, 0, 0, 0, 1.0]))
        assert not ORACLE.solved(task, start, physics.info())


def test_episodes_differ_between_seeds_and_repeat_for_one(physics: Environment) -> None:
    def first_actions(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        prepare("turn_on_led", physics, rng)
        expert = make_expert("turn_on_led", "D", rng)
        actions = []
        for _ in range(5):
            actions.append(expert.act(physics.robot_state(), physics.scene_state()))
            physics.advance(actions[-1])
        return np.stack(actions).tobytes()

    assert first_actions(0) == first_actions(0)
    assert first_actions(0) != first_actions(1)


def test_an_expert_starts_over_after_a_miss(physics: Environment) -> None:
    rng = np.random.default_rng(4)
    prepare("lift_red_block_table", physics, rng)
    expert = make_expert("lift_red_block_table", "D", rng)
    start = physics.info()
    for step in range(150):
        if step == 15:
            # Somebody moves the block while the gripper comes down on it.
            moved = physics.scene_state()
            moved[6] -= 0.04
            physics.restore(physics.robot_state(), moved)
        physics.advance(expert.act(physics.robot_state(), physics.scene_state()))
        if step > 15 and ORACLE.solved("lift_red_block_table", start, physics.info()):
            return
    pytest.fail("the expert did not recover")


def test_tasks_without_an_expert_are_named() -> None:
    with pytest.raises(ConfigError, match="expert"):
        make_expert("unstack_block", "D", np.random.default_rng(0))
    with pytest.raises(ConfigError, match="task"):
        make_expert("open_the_drawer", "D", np.random.default_rng(0))
