"""What an expert does in PlayTable ends alike when its actions are played again, unseen, in the real CALVIN."""

import itertools

import numpy as np
import pytest

from rfedge.envs import make_environment, task_solved
from rfedge.envs.experts import EXPERT_TASKS, prepare_start
from rfedge.envs.interface import Environment, Float64Array
from tests.envs.calvin_install import calvin_python

pytestmark = [pytest.mark.calvin, pytest.mark.slow, pytest.mark.timeout(1800)]

LIMIT_STEPS = 120
STARTS = 3
ALIKE = 0.9


def replay(
    environment: Environment, task: str, start: tuple[Float64Array, Float64Array], actions: list[Float64Array]
) -> bool:
    """Play actions from a start without looking; tell whether the task was done at some step."""
    environment.restore(*start)
    before = environment.info()
    is_solved = False
    for action in actions:
        environment.advance(action)
        is_solved = is_solved or task_solved(task, before, environment.info())
    return is_solved


def work(environment: Environment, task: str, seed: int) -> tuple[tuple[Float64Array, Float64Array], list[Float64Array]]:
    """Let the expert work from a start as it was restored; return the start and its actions, a few beyond success."""
    expert = prepare_start(task, environment, seed)
    start = environment.robot_state(), environment.scene_state()
    environment.restore(*start)
    before, actions, left = environment.info(), [], LIMIT_STEPS
    while left > 0:
        actions.append(expert.act(environment.robot_state(), environment.scene_state()))
        environment.advance(actions[-1])
        left = min(left - 1, 5) if task_solved(task, before, environment.info()) else left - 1
    return start, actions


def test_actions_replayed_in_the_other_simulator_end_alike() -> None:
    calvin_python()
    ends: dict[tuple[str, int], tuple[bool, bool]] = {}
    with make_environment("playtable", render=False) as playtable, make_environment("calvin", render=False) as calvin:
        for task, seed in itertools.product(EXPERT_TASKS, range(STARTS)):
            start, actions = work(playtable, task, seed)
            ends[task, seed] = replay(playtable, task, start, actions), replay(calvin, task, start, actions)
    differing = [start for start, (ours, theirs) in ends.items() if ours != theirs]
    alike = len(ends) - len(differing)
    print(f"{alike} of {len(ends)} end alike; not {differing}")
    assert np.mean([ours for ours, _ in ends.values()]) >= ALIKE, "the experts themselves fail"
    assert alike >= ALIKE * len(ends), differing
