import logging

import numpy as np
import pytest

from rfedge.errors import ConfigError, ContractError
from rfedge.messages import Observation
from rfedge.runtimes import ClosedLoop, OpenLoop, PolicyStep, RateKeeper, make_controller
from rfedge.runtimes.control.controllers import SYNCHRONOUS_MODES, choose_loop
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.safety import guard_action
from tests.errors import raises
from tests.runtimes.loop_parts import FRAME, CountingPolicy, FakeClock, Robot


def _played(mode: str, execute_steps: int | None, policy: CountingPolicy, num_steps: int = 8) -> tuple[list[int], int, int]:
    robot = Robot()
    summary = ControlLoop(make_controller(policy, mode, execute_steps), robot).run("go", max_steps=num_steps)
    assert summary.num_steps == num_steps == len(robot.actions)
    return [round(float(action[0]) * 100) for action in robot.actions], summary.num_inferences, robot.num_frames


@pytest.mark.parametrize(
    ("mode", "execute_steps", "actions", "inferences"),
    [
        ("closed-loop", None, [0, 10, 20, 30, 40, 50, 60, 70], 8),
        ("closed-loop", 1, [0, 10, 20, 30, 40, 50, 60, 70], 8),
        ("open-loop", 1, [0, 10, 20, 30, 40, 50, 60, 70], 8),
        ("open-loop", 3, [0, 1, 2, 10, 11, 12, 20, 21], 3),
        ("open-loop", None, [0, 1, 2, 3, 10, 11, 12, 13], 2),
    ],
)
def test_modes_play_the_chunks(mode: str, execute_steps: int | None, actions: list[int], inferences: int) -> None:
    # Frames are taken for inferences alone: open loop does not render what nobody looks at.
    assert _played(mode, execute_steps, CountingPolicy()) == (actions, inferences, inferences)


def test_reset_drops_the_rest_of_the_chunk() -> None:
    policy = CountingPolicy()
    controller = OpenLoop(policy, 4)
    controller.reset("one")
    controller.control(FRAME)
    assert not controller.needs_observation
    controller.reset("two")
    assert controller.needs_observation
    assert policy.instructions == ["one", "two"]
    assert controller.control(FRAME).action[0] == 0.0


@pytest.mark.parametrize("execute_steps", [0, -1, 5, 9])
def test_execute_steps_must_fit_the_chunk(execute_steps: int) -> None:
    with raises(ConfigError, "execute_steps", got=f"{execute_steps}", expected="1 to 4 (chunk_size)"):
        make_controller(CountingPolicy(), "open-loop", execute_steps)


@pytest.mark.parametrize(
    ("frame_stride", "mode", "execute_steps", "chosen"),
    [
        (1, None, None, ("closed-loop", 1)),
        (3, None, None, ("jump-step", 3)),
        (3, None, 1, ("closed-loop", 1)),
        (3, None, 2, ("open-loop", 2)),
        (1, None, 3, ("open-loop", 3)),
        (1, "open-loop", None, ("open-loop", 4)),
        (3, "jump-step", None, ("jump-step", 3)),
        (3, "overlapped", None, ("overlapped", 3)),
        (3, "overlapped", 1, ("overlapped", 1)),
    ],
)
def test_a_policy_runs_as_it_was_trained_unless_asked(
    frame_stride: int, mode: str | None, execute_steps: int | None, chosen: tuple[str, int]
) -> None:
    assert choose_loop(CountingPolicy(frame_stride=frame_stride), mode, execute_steps) == chosen


def test_modes_are_spelled_out() -> None:
    expected = "one of closed-loop, open-loop, jump-step, overlapped (did you mean 'open-loop'?)"
    with raises(ConfigError, "mode", got="'openloop'", expected=expected):
        make_controller(CountingPolicy(), "openloop", 2)
    with raises(ConfigError, "mode", got="'overlapped'", expected="one of closed-loop, open-loop, jump-step"):
        make_controller(CountingPolicy(), "overlapped", modes=SYNCHRONOUS_MODES)
    with raises(ConfigError, "execute_steps", got=2, expected="1 in closed-loop mode"):
        make_controller(CountingPolicy(), "closed-loop", 2)


@pytest.mark.parametrize(
    ("frame_stride", "execute_steps", "text"),
    [
        (1, 1, None),
        (3, 3, None),
        (1, 2, "the RoboFlamingo paper reports a loss in success for this (Fig. 3c)."),
        (3, 2, "execute_steps is 2 but the policy was trained on frames 3 control steps apart"),
        (3, 1, "execute_steps is 1 but the policy was trained on frames 3 control steps apart"),
    ],
)
def test_another_time_base_is_one_plain_warning(
    caplog: pytest.LogCaptureFixture, frame_stride: int, execute_steps: int, text: str | None
) -> None:
    with caplog.at_level(logging.WARNING):
        policy = CountingPolicy(frame_stride=frame_stride)
        if execute_steps == 1:
            ClosedLoop(policy)
        OpenLoop(policy, execute_steps) if execute_steps > 1 else None
    if text is None:
        assert not caplog.messages
    else:
        assert len(caplog.messages) == 1
        assert text in caplog.messages[0]


def test_actions_are_guarded_before_they_reach_the_robot() -> None:
    np.testing.assert_array_equal(
        guard_action(np.array([2, -3, 0.5, 0, 0, 0, 0.2])), np.array([1, -1, 0.5, 0, 0, 0, 1], dtype=np.float32)
    )
    with raises(ContractError, "action", got="shape (6,)", expected="(7,)"):
        guard_action(np.zeros(6))

    class Broken(CountingPolicy):
        def act(self, observation: Observation) -> PolicyStep:
            return PolicyStep(actions=np.full((4, 7), np.nan, dtype=np.float32), timings_ms={})

    robot = Robot()
    with raises(ContractError, "action", got="NaN or Inf", expected="finite values"):
        ControlLoop(ClosedLoop(Broken()), robot).run("go", max_steps=3)
    np.testing.assert_array_equal(robot.actions, [[0, 0, 0, 0, 0, 0, 0]], "nobody knows what the gripper does")
    assert robot.num_stops == 1


def test_rate_keeper_does_not_drift() -> None:
    clock = FakeClock()
    keeper = RateKeeper(10.0, clock)
    lags_s = []
    for work_s in (0.0, 0.03, 0.06, 0.09, 0.02):
        clock.time_s += work_s
        lags_s.append(keeper.wait())
    assert lags_s == [0.0] * 5
    assert clock.sleeps_s == pytest.approx([0.07, 0.04, 0.01, 0.08])
    assert clock.time_s == pytest.approx(100.4)


def test_a_late_step_is_told_and_its_grid_kept() -> None:
    clock = FakeClock()
    keeper = RateKeeper(10.0, clock)
    keeper.wait()  # deadlines at 100.1, 100.2, ...
    clock.time_s += 0.13
    assert keeper.wait() == pytest.approx(0.03)
    assert keeper.wait() == 0.0
    assert clock.time_s == pytest.approx(100.2)
    clock.time_s += 0.35  # the deadlines 100.3, 100.4 and 100.5 have passed: one late step, two left out
    assert keeper.wait() == pytest.approx(0.25)
    assert (keeper.num_late, keeper.num_skipped) == (2, 2)
    keeper.wait()
    assert clock.time_s == pytest.approx(100.6)
    with raises(ConfigError, "rate_hz", got="0.0", expected="a positive number"):
        RateKeeper(0.0)
