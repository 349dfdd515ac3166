import logging

import numpy as np
import pytest

from rfedge.errors import ConfigError
from rfedge.messages import Observation
from rfedge.runtimes import PolicyStep, make_controller
from rfedge.runtimes.control.ensembling import TemporalEnsemble
from rfedge.runtimes.control.loop import ControlLoop
from tests.errors import raises
from tests.runtimes.loop_parts import FRAME, CountingPolicy, Robot


class RandomPolicy(CountingPolicy):
    """Chunks of random poses and grippers, kept for the test."""

    def __init__(self, chunk_size: int) -> None:
        super().__init__(chunk_size)
        self.rng = np.random.default_rng(4)
        self.chunks: list[np.ndarray] = []

    def act(self, observation: Observation) -> PolicyStep:
        actions = self.rng.uniform(-1, 1, (self.chunk_size, 7)).astype(np.float32)
        actions[:, 6] = np.sign(actions[:, 6])
        self.chunks.append(actions)
        return PolicyStep(actions=actions, timings_ms={})


@pytest.mark.parametrize(("chunk_size", "execute_steps"), [(5, 1), (8, 3), (4, 3)])
def test_what_is_played_is_the_weighted_mean_of_all_that_was_predicted(chunk_size: int, execute_steps: int) -> None:
    """By the definition, one control step after the other: i = 0 is the oldest prediction."""
    policy, robot, decay = RandomPolicy(chunk_size), Robot(), 0.3
    mode = "closed-loop" if execute_steps == 1 else "open-loop"
    controller = make_controller(policy, mode, execute_steps, ensemble=decay)
    ControlLoop(controller, robot).run("go", max_steps=13)
    for step, played in enumerate(robot.actions):
        asked = range(0, step + 1, execute_steps)
        known = [policy.chunks[n][step - at] for n, at in enumerate(asked) if step - at < chunk_size]
        weights = np.exp(-decay * np.arange(len(known)))
        np.testing.assert_allclose(played[:6], np.average(known, axis=0, weights=weights)[:6], atol=1e-6)
        assert played[6] == np.sign(np.dot(weights, [action[6] for action in known]))


def test_one_chunk_is_played_as_it_is_and_a_reset_forgets() -> None:
    policy = RandomPolicy(4)
    ensemble = TemporalEnsemble(policy, 1)
    ensemble.reset("go")
    np.testing.assert_array_equal(ensemble.act(FRAME).actions, policy.chunks[0])
    assert not np.array_equal(ensemble.act(FRAME).actions, policy.chunks[1])
    ensemble.reset("again")
    np.testing.assert_array_equal(ensemble.act(FRAME).actions, policy.chunks[2])
    assert policy.instructions == ["go", "again"]


def test_a_drawn_vote_is_the_newest_one() -> None:
    policy = CountingPolicy(2)
    ensemble = TemporalEnsemble(policy, 1, decay=0.0)
    grippers = iter([[1, 1], [-1, 1]])

    def act(observation: Observation) -> PolicyStep:
        actions = np.zeros((2, 7), dtype=np.float32)
        actions[:, 6] = next(grippers)
        return PolicyStep(actions=actions, timings_ms={})

    policy.act = act  # type: ignore[method-assign]
    ensemble.act(FRAME)
    assert ensemble.act(FRAME).actions[:, 6].tolist() == [-1.0, 1.0]


def test_chunks_that_do_not_overlap_are_refused() -> None:
    with raises(ConfigError, "ensemble", got="4 steps of each chunk of 4"):
        make_controller(CountingPolicy(4), "open-loop", ensemble=0.01)
    with raises(ConfigError, "ensemble", got="nan", expected="a finite decay"):
        TemporalEnsemble(CountingPolicy(4), 1, decay=float("nan"))


def test_jump_step_is_the_policys_own_stride(caplog: pytest.LogCaptureFixture) -> None:
    robot = Robot()
    with caplog.at_level(logging.WARNING):
        ControlLoop(make_controller(CountingPolicy(4, frame_stride=3), "jump-step"), robot).run("go", max_steps=7)
    assert not caplog.messages
    assert [round(float(action[0]) * 100) for action in robot.actions] == [0, 1, 2, 10, 11, 12, 20]
    with raises(ConfigError, "mode jump-step", got="a policy with frame_stride 1"):
        make_controller(CountingPolicy(4), "jump-step")
    with raises(ConfigError, "execute_steps", got=2, expected="3 in jump-step mode"):
        make_controller(CountingPolicy(4, frame_stride=3), "jump-step", 2)
