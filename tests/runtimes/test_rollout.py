"""One rollout: what it gathers, what its record keeps, and that simulated time stands still between two of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from rfedge.messages import Observation
from rfedge.runtimes import ClosedLoop, OpenLoop, RateKeeper
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.rollout import ExpertController, Goal, RolloutRecord, StandingSimulator, roll_out
from tests.runtimes.loop_parts import FRAME, CountingPolicy, FakeClock, Robot

GOAL = Goal("go")


def test_a_rollout_stops_at_success_and_says_what_it_did() -> None:
    robot, steps = Robot(), list[ControlStep]()
    rollout = roll_out(
        ControlLoop(OpenLoop(CountingPolicy(), 4), robot),
        Goal("go", "open_drawer"),
        max_steps=50,
        success=lambda: len(robot.actions) == 6,
        on_step=steps.append,
        observe_every_step=True,
        seed=7,
    )
    record = rollout.record
    assert (record.ended, record.success, record.num_steps, record.num_inferences) == ("success", True, 6, 2)
    assert (record.task, record.instruction, record.seed) == ("open_drawer", "go", 7)
    assert record.call_ms == (1.0, 1.0)
    assert rollout.timings_ms == {"total": [1.0, 1.0]}
    assert rollout.actions.shape == (6, 7)
    assert rollout.actions.dtype == np.float32
    assert [step.index for step in steps] == list(range(6))
    assert robot.num_frames == 6
    assert robot.actions[0].dtype == np.float32
    assert [step.age_steps for step in steps] == [0, 1, 2, 3, 0, 1]
    assert robot.num_stops == 1
    reader = TypeAdapter(RolloutRecord)
    document = reader.dump_python(record, mode="json")
    assert reader.validate_python(document) == record
    with pytest.raises(ValidationError, match="Unexpected keyword argument"):
        reader.validate_python(document | {"renderer": "egl"})


def test_success_is_false_when_time_is_up_and_none_without_a_judge() -> None:
    judged, alone = (ControlLoop(ClosedLoop(CountingPolicy()), Robot()) for _ in range(2))
    assert roll_out(judged, GOAL, max_steps=3, success=lambda: False).record.success is False
    record = roll_out(alone, GOAL, max_steps=3).record
    assert (record.success, record.ended) == (None, "max-steps")


def test_lag_reaches_the_record() -> None:
    clock = FakeClock()

    class SlowRobot(Robot):
        def apply(self, action: np.ndarray) -> None:
            super().apply(action)
            clock.time_s += 0.15 if len(self.actions) == 2 else 0.05

    keeper = RateKeeper(10.0, clock)
    loop = ControlLoop(ClosedLoop(CountingPolicy()), SlowRobot(), pace=keeper, clock=clock)
    record = roll_out(loop, GOAL, max_steps=5).record
    assert (record.num_late, record.num_skipped) == (1, 0)
    assert record.max_lag_s == pytest.approx(0.05)
    assert record.num_missed == 0, "the actions were ready; the robot was slow to take one"


class Swinging:
    """An expert that moves as a list says, beyond the limits once."""

    def __init__(self) -> None:
        self.actions = np.random.default_rng(3).uniform(-1, 1, size=(9, 7))
        self.actions[:, 6] = np.where(np.arange(9) % 2, 1.0, -1.0)
        self.actions[4, 2] = 1.5
        self.num_steps = 0

    def act(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> np.ndarray:
        self.num_steps += 1
        return self.actions[self.num_steps - 1].copy()


def test_an_expert_goes_through_the_guard_in_double_precision() -> None:
    sent: list[np.ndarray] = []

    def observe() -> Observation:
        pytest.fail("experts read states: nothing is drawn for them")

    world = SimpleNamespace(
        observe=observe, advance=sent.append, robot_state=lambda: np.zeros(15), scene_state=lambda: np.zeros(24)
    )
    expert = Swinging()
    rollout = roll_out(ControlLoop(ExpertController(expert, world), StandingSimulator(world)), GOAL, max_steps=9)
    expected = np.clip(expert.actions, -1.0, 1.0)
    np.testing.assert_array_equal(np.stack(sent), expected)
    np.testing.assert_array_equal(rollout.actions, expected)
    record = rollout.record
    assert record.interventions == {"clamped": 1}
    assert (record.num_steps, record.num_inferences, record.call_ms) == (9, 0, None)
    pose = expected[:, :6]
    jerk = sum(((pose[t + 1] - 2 * pose[t] + pose[t - 1]) ** 2).sum() for t in range(1, 8))
    assert record.jerk_square_sum == pytest.approx(jerk)


def test_nothing_moves_between_two_rollouts_in_a_simulator() -> None:
    sent: list[np.ndarray] = []
    seen = Observation(static=FRAME.static, gripper=FRAME.gripper, state=np.ones(15))
    world = SimpleNamespace(observe=lambda: seen, advance=sent.append)
    robot = StandingSimulator(world)
    for _ in range(2):
        roll_out(ControlLoop(ClosedLoop(CountingPolicy()), robot), GOAL, max_steps=3)
    assert len(sent) == 6
