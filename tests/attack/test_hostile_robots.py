"""Robots, policies and judges that hang, lie or fail: each run ends in `stop` within its deadline."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rfedge.errors import ConfigError, ContractError, PolicyUnavailableError
from rfedge.messages import Observation
from rfedge.runtimes import ClosedLoop, OpenLoop, PolicyStep, RateKeeper
from rfedge.runtimes.control.limits import LatePolicy
from rfedge.runtimes.control.loop import ControlLoop, LoopSummary
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.control.resting import claim_robot
from rfedge.runtimes.control.robot import SimulatedRobot
from rfedge.runtimes.control.safety import SafetyGuard, SafetyLimits
from rfedge.runtimes.control.stopping import StopRequest
from tests.errors import raises
from tests.runtimes.loop_parts import FRAME, CountingPolicy, FakeClock, Robot

pytestmark = pytest.mark.attack
PLACES = ("observe", "apply", "reset", "act", "on_step", "success", "instruction")


class Hanging:
    """A robot, a policy and a judge, one of which hangs in step `step` until the robot has been stopped."""

    def __init__(self, place: str, step: int = 2) -> None:
        self.place, self.step = place, step
        self.stopped = threading.Event()
        self.sent: list[np.ndarray] = []
        self.sent_after_stop = self.num_stops = self.num_asked = 0
        self.chunk_size = self.frame_stride = 1

    def hang(self, place: str) -> None:
        if place == self.place and len(self.sent) == self.step:
            assert self.stopped.wait(20.0), "nobody stopped the robot"

    def observe(self) -> Observation:
        self.hang("observe")
        return FRAME

    def apply(self, action: np.ndarray) -> None:
        self.hang("apply")
        self.sent_after_stop += self.num_stops
        self.sent.append(action)

    def stop(self) -> None:
        self.num_stops += 1
        self.stopped.set()

    def reset(self, instruction: str) -> None:
        self.hang("reset")

    def act(self, observation: Observation) -> PolicyStep:
        self.hang("act")
        return PolicyStep(actions=np.array([[0.1, 0, 0, 0, 0, 0, 1]], dtype=np.float32), timings_ms={})

    def on_step(self, step: ControlStep) -> None:
        if step.index == self.step - 1:
            self.hang("on_step")

    def success(self) -> bool:
        self.hang("success")
        return False

    def instruction(self) -> str:
        self.hang("instruction")
        return f"word {len(self.sent)}" if self.place == "reset" else "go"

    def run(self, **options: object) -> LoopSummary:
        loop = ControlLoop(ClosedLoop(self), self, **options)  # type: ignore[arg-type]
        return loop.run(self.instruction, max_steps=9, on_step=self.on_step, success=self.success)


@pytest.mark.parametrize("place", PLACES)
def test_whatever_hangs_the_robot_is_stopped(place: str) -> None:
    robot = Hanging(place)
    started_s = time.monotonic()
    summary = robot.run(step_deadline_s=0.05)
    assert time.monotonic() - started_s < 10.0
    assert summary.ended == "step"
    # Of an `apply` under way the rest may still come; then the robot is stopped once more.
    assert (len(robot.sent), robot.num_stops) == ((3, 2) if place == "apply" else (2, 2))
    assert robot.sent_after_stop == (place == "apply")


@pytest.mark.parametrize("place", ["observe", "apply", "reset"])
def test_a_backbone_deadline_and_misses_watch_the_robot_too(place: str) -> None:
    robot = Hanging(place)
    summary = robot.run(backbone_deadline_s=0.02, late=LatePolicy("hold", stop_after_misses=2))
    assert (summary.ended, robot.num_stops) == ("step", 2)


def test_where_a_rate_is_held_a_deadline_is_the_default() -> None:
    clock, robot = FakeClock(), Hanging("observe")

    def hang(place: str) -> None:
        if place == "observe" and len(robot.sent) == 2:
            clock.time_s += 2.1
            Hanging.hang(robot, place)

    robot.hang = hang  # type: ignore[method-assign]
    assert robot.run(pace=RateKeeper(10.0, clock), clock=clock).ended == "step"
    assert robot.num_stops == 2


def test_a_robot_with_a_heartbeat_is_asked_for_it_and_another_refused() -> None:
    class Beating(Hanging):
        within_s = 0.0

        def expect_actions(self, within_s: float) -> None:
            assert not self.sent
            self.within_s = within_s

    robot = Beating("nowhere")
    robot.run(heartbeat_s=0.5)
    assert robot.within_s == 0.5
    plain = Hanging("nowhere")
    with raises(ConfigError, "heartbeat_s", got="a Hanging without expect_actions", expected="a robot that rests by itself"):
        plain.run(heartbeat_s=0.5)
    assert (plain.sent, plain.num_stops) == ([], 0)


def test_a_stop_that_fails_or_is_interrupted_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Robot):
        def __init__(self, *errors: BaseException) -> None:
            super().__init__()
            self.errors = list(errors)

        def stop(self) -> None:
            super().stop()
            if self.errors:
                raise self.errors.pop(0)

    robot = Stubborn(OSError("bus"), OSError("bus"))
    with caplog.at_level(logging.WARNING):
        assert ControlLoop(ClosedLoop(CountingPolicy()), robot).run("go", max_steps=2).ended == "max-steps"
    assert robot.num_stops == 3
    assert len(caplog.messages) == 2
    robot = Stubborn(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ControlLoop(ClosedLoop(CountingPolicy()), robot).run("go", max_steps=2)
    assert robot.num_stops == 2, "Ctrl-C in the middle of a stop does not leave it out"


def test_an_urgent_request_stops_the_robot_beside_the_step() -> None:
    robot, stop = Hanging("observe"), StopRequest()

    def insist() -> None:
        while len(robot.sent) < 2:
            time.sleep(0.001)
        stop.insist("the operator")

    thread = threading.Thread(target=insist)
    thread.start()
    summary = robot.run(stop=stop)
    thread.join()
    assert (summary.ended, len(robot.sent), robot.num_stops) == ("the operator", 2, 2)


class Dying(CountingPolicy):
    """Has an answer once per instruction, in time or late, and then none."""

    def __init__(self, clock: FakeClock, error: type[Exception] | None) -> None:
        super().__init__(chunk_size=1)
        self.clock, self.error = clock, error

    def act(self, observation: Observation) -> PolicyStep:
        if self.num_calls > 0:
            if self.error is not None:
                raise self.error("the server is gone")
            self.clock.time_s += 1.0
        self.num_calls += 1
        return PolicyStep(actions=np.array([[1, 0, 0, 0, 0, 0, -1]], dtype=np.float32), timings_ms={})


@pytest.mark.parametrize(("error", "moved"), [(PolicyUnavailableError, 1), (None, 1 + 5)])
def test_repeat_ends(error: type[Exception] | None, moved: int) -> None:
    clock, robot = FakeClock(), Robot()
    loop = ControlLoop(
        ClosedLoop(Dying(clock, error)), robot, pace=RateKeeper(10.0, clock), late=LatePolicy("repeat"), clock=clock
    )
    loop.run("go", max_steps=100)
    assert [action[0] for action in robot.actions] == [1.0] * moved + [0.0] * (100 - moved)
    assert all(action[6] == -1.0 for action in robot.actions)


def test_a_new_instruction_forgets_the_last_action() -> None:
    clock, robot = FakeClock(), Robot()

    class Late(Dying):
        def act(self, observation: Observation) -> PolicyStep:
            if self.instructions[-1] == "b":
                self.clock.time_s += 1.0
            return super().act(observation)

    words = iter(["a", "b", "b"])
    loop = ControlLoop(
        ClosedLoop(Late(clock, None)), robot, pace=RateKeeper(10.0, clock), late=LatePolicy("repeat"), clock=clock
    )
    loop.run(lambda: next(words), max_steps=3)
    assert [action[0] for action in robot.actions] == [1.0, 0.0, 0.0], "the action of a is not played under b"


class Absent(CountingPolicy):
    def act(self, observation: Observation) -> PolicyStep:
        raise PolicyUnavailableError("the server is gone")


@pytest.mark.parametrize(("reported", "kept"), [(None, 0.0), (0.0, 0.0), (-1.0, -1.0), (0.5, 1.0)])
def test_no_gripper_command_before_its_state_is_known(reported: float | None, kept: float) -> None:
    robot = Robot(None if reported is None else np.r_[np.zeros(14), reported])
    ControlLoop(ClosedLoop(Absent()), robot).run("go", max_steps=3)
    np.testing.assert_array_equal([action[6] for action in robot.actions], [kept] * 3)
    guard = SafetyGuard()
    assert guard.check(np.full(7, np.nan)).action[6] == 0.0
    guard.sent(np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32))
    assert guard.check(np.full(7, np.nan)).action[6] == -1.0, "what was commanded is known"
    guard.sent(guard.hold())
    assert guard.check(np.zeros(7)).action[6] == -1.0, "0 is no command"


class Plant:
    """A simulator that reports `gripper` and keeps its commands."""

    def __init__(self, gripper: float | None) -> None:
        self.gripper = gripper
        self.commands: list[float] = []

    def observe(self) -> Observation:
        state = None if self.gripper is None else np.r_[np.zeros(14), self.gripper]
        return Observation(static=FRAME.static, gripper=FRAME.gripper, state=state)

    def advance(self, action: np.ndarray) -> None:
        self.commands.append(float(action[6]))


@pytest.mark.parametrize(("reported", "commands"), [(-1.0, [-1.0] * 3), (0.0, []), (None, [])])
def test_a_simulator_holds_the_gripper_that_it_reports(reported: float | None, commands: list[float]) -> None:
    plant = Plant(reported)
    robot = SimulatedRobot(plant)
    for _ in range(2):
        robot.apply(np.zeros(7, dtype=np.float32))
    robot.stop()
    assert plant.commands == commands


def test_a_hung_simulator_does_not_hang_its_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfedge.runtimes.control.robot._STOP_WAIT_S", 0.01)
    released, begun = threading.Event(), threading.Event()

    class Hung(Plant):
        def observe(self) -> Observation:
            begun.set()
            assert released.wait(20.0)
            return super().observe()

    robot = SimulatedRobot(Hung(1.0))
    thread = threading.Thread(target=robot.observe)
    thread.start()
    assert begun.wait(20.0)
    robot.stop()
    released.set()
    thread.join()


def test_one_loop_drives_a_robot() -> None:
    robot, seen = Robot(), list[ControlStep]()

    def second(step: ControlStep) -> None:
        with raises(ConfigError, "robot", got="a second control loop", expected="one at a time"):
            ControlLoop(ClosedLoop(CountingPolicy()), robot).run("go", max_steps=1)
        assert robot.num_stops == 0, "the first loop goes on"
        seen.append(step)

    ControlLoop(ClosedLoop(CountingPolicy()), robot).run("go", max_steps=2, on_step=second)
    assert len(seen) == 2
    robot.num_stops = 0
    ControlLoop(ClosedLoop(CountingPolicy()), robot).run("go", max_steps=1)
    with claim_robot("arm/1"), raises(ConfigError, "robot arm/1", got="a second control loop"), claim_robot("arm/1"):
        pass
    with claim_robot("arm/1"), claim_robot("arm/2"):
        pass


def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    os.mkfifo(tmp_path / "rfedge-robot-arm.lock")
    with claim_robot("arm"), raises(ConfigError, "robot arm", got="a second control loop"), claim_robot("arm"):
        pass
    (tmp_path / "rfedge-robot-arm.lock").unlink()
    (tmp_path / "rfedge-robot-arm.lock").symlink_to(tmp_path / "elsewhere")
    with raises(ConfigError, "lock ...", expected="a file of ours"), claim_robot("arm"):
        pass


@pytest.mark.parametrize("jump_s", [-3600.0, -0.5, 3600.0])
def test_a_clock_that_jumps_delays_no_step(jump_s: float) -> None:
    clock = FakeClock()
    keeper = RateKeeper(10.0, clock)
    keeper.wait()
    keeper.wait()
    clock.time_s += jump_s
    clock.sleeps_s.clear()
    for _ in range(20):
        keeper.wait()
        assert keeper.overdue_s() == 0.0
    assert max(clock.sleeps_s) <= 0.2 + 1e-9
    assert sum(clock.sleeps_s) == pytest.approx(1.95, abs=0.1)


def test_a_watchdog_expires_although_the_clock_was_set_back() -> None:
    from rfedge.runtimes.control.watchdog import Watchdog

    clock, stops = FakeClock(), list[float]()
    watchdog = Watchdog({"step": 2.0}, lambda: stops.append(clock.time_s), clock)
    with watchdog.watching("step"):
        clock.time_s -= 3600.0
        assert watchdog.check() == 2.0
        clock.time_s += 2.1
        watchdog.check()
    assert len(stops) == 1


def _lying_states() -> Iterator[object]:
    good = np.r_[np.zeros(14), 1.0]
    for value in (np.nan, np.inf, -np.inf, 1e308, -1e308, 1e5):
        bad = good.copy()
        bad[3] = value
        yield bad
    yield from (good[:14], np.r_[good, 0.0], good[None], good.astype(int), good.astype(object), good.astype(str))
    yield from (list(good), "state", 1.0, {"x": 1})


@pytest.mark.parametrize("state", tuple(_lying_states()), ids=lambda state: f"{type(state).__name__}-{np.shape(state)}")
def test_a_state_that_is_none_is_refused_before_the_backbone(state: object) -> None:
    policy, robot = CountingPolicy(), Robot(state)  # type: ignore[arg-type]
    with raises(ContractError, "observation.state"):
        ControlLoop(ClosedLoop(policy), robot).run("go", max_steps=3)
    assert (policy.num_calls, robot.actions, robot.num_stops) == (0, [], 1)


def test_a_pose_that_jumps_ends_the_run() -> None:
    class Jumping(Robot):
        def observe(self) -> Observation:
            assert self.state is not None
            self.state = self.state + np.r_[0.02 * (1 + 4 * (len(self.actions) == 3)), np.zeros(14)]
            return super().observe()

    def run(limit_m: float | None, controller: Callable[[CountingPolicy], ClosedLoop] = ClosedLoop) -> Robot:
        robot = Jumping(np.r_[np.zeros(14), 1.0])
        guard = SafetyGuard(SafetyLimits(max_pose_jump_m=limit_m))
        ControlLoop(controller(CountingPolicy()), robot, guard=guard).run("go", max_steps=6)
        return robot

    assert len(run(None).actions) == 6
    with raises(ContractError, got="a tool that moved 0.1 m between two frames", expected="up to 0.05 m beyond..."):
        run(0.05)
    with raises(ContractError, "max-pose-jump-m", got="an observation without state"):
        ControlLoop(ClosedLoop(CountingPolicy()), Robot(), guard=SafetyGuard(SafetyLimits(max_pose_jump_m=0.1))).run(
            "go", max_steps=1
        )


def test_a_gripper_that_flutters_is_held() -> None:
    class Fluttering(CountingPolicy):
        def act(self, observation: Observation) -> PolicyStep:
            self.num_calls += 1
            actions = np.zeros((1, 7), dtype=np.float32)
            actions[0, 6] = 1.0 if self.num_calls % 2 else -1.0
            return PolicyStep(actions=actions, timings_ms={})

    robot, guard = Robot(), SafetyGuard(SafetyLimits(min_gripper_steps=3))
    summary = ControlLoop(OpenLoop(Fluttering(chunk_size=1), 1), robot, guard=guard).run("go", max_steps=9)
    assert [int(action[6]) for action in robot.actions] == [1, 1, 1, -1, -1, -1, 1, 1, 1]
    assert summary.interventions == {"gripper-limit": 3}
    with raises(ConfigError, "min_gripper_steps", got=0, expected="a positive number"):
        SafetyLimits(min_gripper_steps=0)
