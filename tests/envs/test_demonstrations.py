"""Recorded episodes keep the frame contract and depend on task, scene and seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from rfedge.envs import INSTRUCTIONS, Environment, make_environment
from rfedge.envs.demonstrations import MAX_FRAMES, record_episode, record_episodes
from rfedge.envs.language import PARAPHRASES
from rfedge.errors import ConfigError
from rfedge.messages import check_action


def test_frames_have_the_contracted_shapes_and_meaning(playtable: Environment) -> None:
    episode = record_episode("open_drawer", seed=2, environment=playtable)
    frames = episode.frames
    count = len(frames["actions"])
    assert episode.success
    assert episode.instruction in PARAPHRASES["open_drawer"]
    assert episode.instruction != INSTRUCTIONS["open_drawer"]
    assert 16 <= count <= MAX_FRAMES
    shapes = {"rgb_static": (200, 200, 3), "rgb_gripper": (84, 84, 3), "robot_obs": (15,), "scene_obs": (24,)}
    shapes |= {"actions": (7,), "rel_actions": (7,)}
    assert {name: array.shape[1:] for name, array in frames.items()} == shapes
    assert all(len(array) == count for array in frames.values())
    assert frames["rgb_static"].dtype == frames["rgb_gripper"].dtype == np.uint8
    assert all(frames[name].dtype == np.float64 for name in ("robot_obs", "scene_obs", "actions", "rel_actions"))
    check_action(frames["rel_actions"])
    np.testing.assert_array_equal(frames["actions"][:-1, :6], frames["robot_obs"][1:, :6])
    np.testing.assert_array_equal(frames["actions"][:, 6], frames["rel_actions"][:, 6])


def test_replaying_the_recorded_actions_gives_the_recorded_states(playtable: Environment) -> None:
    frames = record_episode("turn_on_led", seed=3, environment=playtable).frames
    twin = record_episode("turn_on_led", seed=3, environment=playtable).frames
    for name, array in frames.items():
        np.testing.assert_array_equal(array, twin[name])


def test_a_used_environment_gives_the_same_episode_as_a_fresh_one(playtable: Environment) -> None:
    record_episode("move_slider_left", seed=0, environment=playtable)
    used = record_episode("turn_on_led", seed=6, environment=playtable)
    fresh = record_episode("turn_on_led", seed=6)
    assert (used.instruction, used.success, used.seed) == (fresh.instruction, fresh.success, fresh.seed)
    for name, array in used.frames.items():
        np.testing.assert_array_equal(array, fresh.frames[name])


def test_many_episodes_come_in_order(playtable: Environment) -> None:
    episodes = list(record_episodes(["turn_on_led", "turn_off_led"], range(2), environment=playtable))
    order = [(episode.seed, episode.task) for episode in episodes]
    assert order == [(0, "turn_on_led"), (0, "turn_off_led"), (1, "turn_on_led"), (1, "turn_off_led")]


def test_another_scene_is_refused() -> None:
    with make_environment("playtable", scene="A", render=False) as environment, pytest.raises(ConfigError, match="scene A"):
        record_episode("turn_on_led", scene="D", seed=0, environment=environment)
