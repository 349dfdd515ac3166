"""Late steps, hung backbones, new instructions, stops: what the loop does when not all is well."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from rfedge.errors import ConfigError, PolicyUnavailableError
from rfedge.messages import Observation
from rfedge.runtimes import ClosedLoop, OpenLoop, PolicyStep, RateKeeper
from rfedge.runtimes.control.limits import LatePolicy
from rfedge.runtimes.control.loop import STOPPED, ControlLoop
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.control.stopping import StopRequest
from rfedge.runtimes.control.watchdog import Watchdog
from tests.errors import raises
from tests.runtimes.loop_parts import CountingPolicy, FakeClock, Robot


class SlowPolicy(CountingPolicy):
    """Takes `durations_s`, one per call, on a clock of its own; the gripper closes from the start."""

    def __init__(self, clock: FakeClock, durations_s: list[float]) -> None:
        super().__init__()
        self.clock = clock
        self.durations_s = durations_s

    def act(self, observation: Observation) -> PolicyStep:
        self.clock.time_s += self.durations_s[self.num_calls]
        step = super().act(observation)
        step.actions[:, 6] = -1.0
        return step


def _late_run(late: LatePolicy, durations_s: list[float]) -> tuple[Robot, object, list[ControlStep]]:
    clock, robot, steps = FakeClock(), Robot(), list[ControlStep]()
    loop = ControlLoop(
        ClosedLoop(SlowPolicy(clock, durations_s)), robot, pace=RateKeeper(10.0, clock), late=late, clock=clock
    )
    return robot, loop.run("go", max_steps=len(durations_s), on_step=steps.append), steps


@pytest.mark.parametrize(
    ("action", "sent"),
    [("send", [0.0, 0.1, 0.2, 0.3, 0.4]), ("hold", [0.0, 0.1, 0.0, 0.3, 0.4]), ("repeat", [0.0, 0.1, 0.1, 0.3, 0.4])],
)
def test_a_missed_step_sends_what_its_policy_says(action: str, sent: list[float]) -> None:
    robot, summary, steps = _late_run(LatePolicy(action), [0.02, 0.05, 0.13, 0.02, 0.02])
    np.testing.assert_allclose([a[0] for a in robot.actions], sent, atol=1e-6)
    assert [a[6] for a in robot.actions] == [-1.0] * 5, "zero motion keeps the gripper"
    assert [step.is_missed for step in steps] == [False, False, True, False, False]
    assert steps[2].overdue_s == pytest.approx(0.03)
    assert steps[3].lag_s == pytest.approx(0.03)
    assert steps[2].age_ms == pytest.approx(130.0)
    assert (summary.num_missed, summary.ended, summary.max_lag_s) == (1, "max-steps", pytest.approx(0.03))


def test_misses_in_a_row_stop_the_robot() -> None:
    robot, summary, steps = _late_run(LatePolicy("hold", stop_after_misses=2), [0.2, 0.02, 0.2, 0.2, 0.02])
    assert (summary.ended, summary.num_steps, summary.num_missed) == ("misses", 4, 3)
    assert len(robot.actions) == 4
    assert robot.num_stops == 1
    assert not steps[3].sent[:6].any()


def test_late_policies_are_spelled_out() -> None:
    with raises(ConfigError, "late", got="'holt'", expected="one of send, hold, repeat (did you mean 'hold'?)"):
        LatePolicy("holt")
    with raises(ConfigError, "stop_after_misses", got=0, expected="1 or more"):
        LatePolicy(stop_after_misses=0)


def test_five_and_thirty_hertz_hold_their_grid() -> None:
    for rate_hz in (5.0, 30.0):
        clock = FakeClock()
        loop = ControlLoop(
            ClosedLoop(SlowPolicy(clock, [0.02] * 300)), Robot(), pace=RateKeeper(rate_hz, clock), clock=clock
        )
        summary = loop.run("go", max_steps=300)
        assert (summary.num_missed, summary.max_lag_s) == (0, 0.0)
        assert clock.time_s == pytest.approx(100.0 + 299 / rate_hz + 0.02)


def test_a_watchdog_sees_a_call_that_is_still_running() -> None:
    clock, stops = FakeClock(), list[float]()
    watchdog = Watchdog({"backbone": 0.5, "step": 2.0, "nothing": None}, lambda: stops.append(clock.time_s), clock)
    assert watchdog.check() == 0.5
    with watchdog.watching("step"), watchdog.watching("backbone"):
        clock.time_s += 0.4
        assert watchdog.check() == pytest.approx(0.1)
    clock.time_s += 9.0
    assert watchdog.check() == 0.5, "nothing is watched"
    with watchdog.watching("nothing"):
        clock.time_s += 9.0
        assert watchdog.check() == 0.5
    with watchdog.watching("step"):
        clock.time_s += 1.8
        assert watchdog.check() == pytest.approx(0.2)
        with watchdog.watching("backbone"):
            clock.time_s += 0.6
            assert watchdog.expired is None
            watchdog.check()
            assert watchdog.expired in ("backbone", "step")
            watchdog.check()
    watchdog.expire("too late to ask")
    assert stops == [pytest.approx(120.8)], "it stops the robot once"
    with raises(ConfigError, "backbone deadline", got=0, expected="a positive number of seconds"):
        Watchdog({"backbone": 0}, list)


class HungPolicy(CountingPolicy):
    """Its third call returns only when the robot has been stopped."""

    def __init__(self, stopped: threading.Event) -> None:
        super().__init__()
        self.stopped = stopped

    def act(self, observation: Observation) -> PolicyStep:
        if self.num_calls == 2:
            assert self.stopped.wait(10.0)
        return super().act(observation)


def test_a_hung_backbone_is_stopped_from_another_thread_and_its_answer_dropped() -> None:
    stopped, threads = threading.Event(), list[threading.Thread]()

    class StoppingRobot(Robot):
        def stop(self) -> None:
            super().stop()
            threads.append(threading.current_thread())
            stopped.set()

    robot = StoppingRobot()
    summary = ControlLoop(ClosedLoop(HungPolicy(stopped)), robot, backbone_deadline_s=0.02).run("go", max_steps=9)
    assert (summary.ended, summary.num_steps, len(robot.actions)) == ("backbone", 2, 2)
    assert threads[0] is not threading.main_thread()
    assert threads[1] is threading.main_thread()
    assert not [thread for thread in threading.enumerate() if thread.name == "rfedge-watchdog"]


def test_a_robot_that_was_stopped_gets_nothing_when_the_policy_then_gives_up() -> None:
    stopped = threading.Event()

    class GivesUp(HungPolicy):
        def act(self, observation: Observation) -> PolicyStep:
            step = super().act(observation)
            if self.stopped.is_set():
                raise PolicyUnavailableError("the server is slow")
            return step

    class StoppingRobot(Robot):
        def stop(self) -> None:
            super().stop()
            stopped.set()

    robot = StoppingRobot()
    summary = ControlLoop(ClosedLoop(GivesUp(stopped)), robot, backbone_deadline_s=0.02).run("go", max_steps=9)
    assert (summary.ended, len(robot.actions)) == ("backbone", 2)


def test_a_robot_that_cannot_be_stopped_is_an_error_of_the_loop() -> None:
    stopped = threading.Event()

    class StuckRobot(Robot):
        def stop(self) -> None:
            stopped.set()
            raise OSError("the bus is gone")

    with pytest.raises(OSError, match="the bus is gone"):
        ControlLoop(ClosedLoop(HungPolicy(stopped)), StuckRobot(), backbone_deadline_s=0.02).run("go", max_steps=9)


class AbsentPolicy(CountingPolicy):
    """Has no answer in calls 1 and 2, and cannot be reset at first."""

    num_asked = num_resets = 0

    def reset(self, instruction: str) -> None:
        self.num_resets += 1
        if self.num_resets == 1:
            raise PolicyUnavailableError("the server is busy")
        super().reset(instruction)

    def act(self, observation: Observation) -> PolicyStep:
        self.num_asked += 1
        if self.num_asked in (2, 3):
            raise PolicyUnavailableError("the server is gone")
        return super().act(observation)


def test_a_policy_without_an_answer_is_a_miss_and_asked_again() -> None:
    robot = Robot()
    loop = ControlLoop(ClosedLoop(AbsentPolicy()), robot, late=LatePolicy("repeat"))
    summary = loop.run("go", max_steps=6)
    np.testing.assert_allclose([action[0] for action in robot.actions], [0, 0, 0, 0, 0.1, 0.2], atol=1e-6)
    assert (summary.num_missed, summary.num_unavailable, summary.num_inferences) == (3, 3, 3)
    loop = ControlLoop(ClosedLoop(AbsentPolicy()), Robot(), late=LatePolicy(stop_after_misses=2))
    assert loop.run("go", max_steps=9).ended == "misses"


def test_a_new_instruction_resets_the_policy_and_drops_the_chunk() -> None:
    policy, robot, steps = CountingPolicy(), Robot(), list[ControlStep]()
    words = iter(["open the drawer"] * 3 + ["push the button"] * 3)
    ControlLoop(OpenLoop(policy, 4), robot).run(lambda: next(words), max_steps=6, on_step=steps.append)
    assert policy.instructions == ["open the drawer", "push the button"]
    np.testing.assert_allclose([action[0] for action in robot.actions], [0, 0.01, 0.02, 0, 0.01, 0.02], atol=1e-6)
    assert [step.instruction for step in steps] == ["open the drawer", None, None, "push the button", None, None]


def test_a_request_ends_the_run_between_two_steps() -> None:
    robot, stop = Robot(), StopRequest()

    def ask(step: ControlStep) -> None:
        if step.index == 2:
            stop.ask("the operator")
            stop.ask("somebody else")

    summary = ControlLoop(ClosedLoop(CountingPolicy()), robot, stop=stop).run("go", max_steps=9, on_step=ask)
    assert (summary.ended, summary.num_steps, robot.num_stops) == ("the operator", 3, 1)


# In a process of its own: libraries that other tests load change what a signal does to a process.
SIGNALS = """
import os, signal, sys
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ClosedLoop
from rfedge.runtimes.control.stopping import StopRequest, stop_on_signals
from tests.runtimes.loop_parts import CountingPolicy, Robot

number, seen = getattr(signal, sys.argv[1]), []
signal.signal(number, lambda received, _: seen.append(received))
request = StopRequest()
with stop_on_signals(request):
    os.kill(os.getpid(), number)
    assert (request.reason, seen) == (None, [number]), "nothing runs yet that could end"
with stop_on_signals(request):
    ControlLoop(ClosedLoop(CountingPolicy()), Robot(), stop=request).run("go", max_steps=1)
    os.kill(os.getpid(), number)
    assert (request.reason, seen) == (sys.argv[1], [number])
    os.kill(os.getpid(), number)
    assert seen == [number] * 2
os.kill(os.getpid(), number)
assert seen == [number] * 3
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_asks_and_a_second_one_acts_as_before(name: str) -> None:
    command, root = [sys.executable, "-c", SIGNALS, name], Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_robot_is_stopped_whatever_happens(error: type[BaseException]) -> None:
    robot = Robot()

    def fail(step: ControlStep) -> None:
        raise error

    with pytest.raises(error):
        ControlLoop(ClosedLoop(CountingPolicy()), robot).run("go", max_steps=3, on_step=fail)
    assert (len(robot.actions), robot.num_stops) == (1, 1)


class Camera(Robot):
    """Shows pictures 0, 1, 2, ... until it freezes; the wrist camera always repeats one in three."""

    def __init__(self, freezes_at: int) -> None:
        super().__init__()
        self.freezes_at = freezes_at

    def observe(self) -> Observation:
        self.num_frames += 1
        static = np.full((200, 200, 3), min(self.num_frames, self.freezes_at), np.uint8)
        return Observation(static=static, gripper=np.full((84, 84, 3), 2 * self.num_frames // 3, np.uint8))


def test_equal_frames_are_counted_and_may_end_the_run() -> None:
    robot = Camera(freezes_at=10)
    summary = ControlLoop(OpenLoop(CountingPolicy(), 1), robot).run("go", max_steps=30)
    assert (summary.ended, summary.frozen) == ("max-steps", {"static": 20, "gripper": 9})
    robot = Camera(freezes_at=10)
    summary = ControlLoop(OpenLoop(CountingPolicy(), 1), robot, stop_after_frozen=5).run("go", max_steps=30)
    assert (summary.ended, summary.num_steps, len(robot.actions), robot.num_stops) == ("frozen", 14, 14, 1)
    assert "frozen" in STOPPED
    assert ControlLoop(OpenLoop(CountingPolicy(), 1), Camera(100)).run("go", max_steps=2).frozen == {}
    with raises(ConfigError, "stop_after_frozen", got=0, expected="1 or more"):
        ControlLoop(OpenLoop(CountingPolicy(), 1), robot, stop_after_frozen=0)
