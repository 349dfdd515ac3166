"""The worker is held and released by hand: what is played does not depend on how fast this machine is."""

import concurrent.futures
import logging
import threading

import numpy as np
import pytest

from rfedge.errors import ConfigError, ContractError, PolicyUnavailableError
from rfedge.messages import Observation
from rfedge.runtimes import PolicyStep, RateKeeper, make_controller
from rfedge.runtimes.control.limits import LatePolicy
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.control.overlapped import Overlapped
from tests.errors import raises
from tests.runtimes.loop_parts import CountingPolicy, FakeClock, Robot


class HeldPolicy(CountingPolicy):
    """Answers when it is released; action j of inference i is (10 i + j) / 100."""

    def __init__(self, chunk_size: int = 8, frame_stride: int = 1) -> None:
        super().__init__(chunk_size, frame_stride)
        self.released = threading.Semaphore(0)
        self.errors: dict[int, Exception] = {}
        self.thread_names: set[str] = set()

    def act(self, observation: Observation) -> PolicyStep:
        self.thread_names.add(threading.current_thread().name)
        assert self.released.acquire(timeout=10.0)
        if error := self.errors.pop(self.num_calls, None):
            self.num_calls += 1
            raise error
        return super().act(observation)


def _release(controller: Overlapped, policy: HeldPolicy) -> None:
    """Let the running inference end, and wait until it has."""
    assert controller._running is not None
    policy.released.release()
    concurrent.futures.wait([controller._running])


class Bench:
    """Runs a controller whose inferences end between two named steps."""

    def __init__(self, policy: HeldPolicy, ends_before: set[int], **options: object) -> None:
        self.clock = FakeClock()
        self.policy = policy
        self.robot = Robot()
        self.steps: list[ControlStep] = []
        self.controller = Overlapped(policy, clock=self.clock, **options)  # type: ignore[arg-type]
        self.ends_before = ends_before

    def run(self, num_steps: int, **options: object) -> object:
        loop = ControlLoop(
            self.controller,
            self.robot,
            pace=RateKeeper(10.0, self.clock),
            clock=self.clock,
            **options,  # type: ignore[arg-type]
        )
        try:
            return loop.run("go", max_steps=num_steps, on_step=self._after)
        finally:
            for _ in range(9):
                self.policy.released.release()
            self.controller.close()

    def _after(self, step: ControlStep) -> None:
        self.steps.append(step)
        if step.index + 1 in self.ends_before:
            _release(self.controller, self.policy)

    def played(self) -> list[int]:
        return [round(float(action[0]) * 100) for action in self.robot.actions]


def test_a_chunk_is_played_from_the_action_of_its_arrival() -> None:
    """Each inference takes 3 steps: its frame is 3 steps old on arrival, and 3 actions are left out."""
    bench = Bench(HeldPolicy(), {3, 6, 9})
    summary = bench.run(11)
    # frames of steps 0, 3, 6; the chunk of step 0 arrives in step 3 and so on
    assert bench.played() == [0, 0, 0, 3, 4, 5, 13, 14, 15, 23, 24]
    assert [s.age_steps for s in bench.steps] == [0, 0, 0, 3, 4, 5, 3, 4, 5, 3, 4]
    assert [s.age_ms for s in bench.steps[3:]] == pytest.approx([300, 400, 500, 300, 400, 500, 300, 400])
    assert [s.missing for s in bench.steps] == ["starting"] * 3 + [None] * 8
    assert [s.inference is not None for s in bench.steps] == [index in (3, 6, 9) for index in range(11)]
    assert (summary.num_starting, summary.num_missed, summary.num_inferences) == (3, 0, 3)
    assert summary.max_age_ms == pytest.approx(500.0)
    assert bench.robot.num_frames == 4
    assert bench.policy.thread_names == {"rfedge-inference"}


def test_frames_keep_their_distance() -> None:
    bench = Bench(HeldPolicy(), {1, 5, 9}, execute_steps=4)
    bench.run(11)
    assert bench.played() == [0, 1, 2, 3, 4, 11, 12, 13, 14, 21, 22]
    assert bench.robot.num_frames == 3


@pytest.mark.parametrize(("late", "sent"), [("hold", 0), ("repeat", 5), ("send", 0)])
def test_a_used_up_chunk_is_said_and_the_loop_decides(late: str, sent: int) -> None:
    bench = Bench(HeldPolicy(chunk_size=6), {2, 9})
    summary = bench.run(11, late=LatePolicy(late))
    # the chunk of step 0 has actions for steps 0 to 5; the next, of step 2, arrives in step 9: all its actions are over
    assert bench.played() == [0, 0, 2, 3, 4, 5, sent, sent, sent, sent, sent]
    assert [s.missing for s in bench.steps[6:]] == ["starved"] * 5
    assert bench.steps[9].inference is not None
    assert (summary.num_starved, summary.num_missed) == (5, 5)
    assert [action[6] for action in bench.robot.actions[6:]] == [1.0] * 5, "the gripper stays as it was last sent"


def test_starving_stops_the_robot_but_starting_does_not() -> None:
    bench = Bench(HeldPolicy(chunk_size=6), {4})
    summary = bench.run(99, late=LatePolicy("hold", stop_after_misses=3))
    assert (summary.ended, summary.num_starting, summary.num_steps) == ("misses", 4, 9)
    assert bench.robot.num_stops == 1


def test_a_hung_inference_is_seen_while_the_loop_goes_on() -> None:
    bench = Bench(HeldPolicy(chunk_size=99), {1})
    summary = bench.run(99, backbone_deadline_s=0.75)
    # handed over in step 1, at 0.1 s; 0.8 s later it is overdue
    assert (summary.ended, summary.num_steps, bench.robot.num_stops) == ("backbone", 9, 1)


def test_errors_of_the_policy_reach_the_loop_and_stop_the_robot() -> None:
    policy = HeldPolicy()
    policy.errors[1] = ContractError("backbone output 'feature': got NaN or Inf")
    bench = Bench(policy, {1, 3})
    with raises(ContractError, "backbone output 'feature': got NaN or Inf"):
        bench.run(9)
    assert (len(bench.robot.actions), bench.robot.num_stops) == (3, 1)


def test_an_absent_server_lets_the_chunk_play_on() -> None:
    policy = HeldPolicy(chunk_size=4)
    policy.errors[1] = PolicyUnavailableError("the server is gone")
    bench = Bench(policy, {1, 2, 4})
    summary = bench.run(6)
    # the frame of step 1 has no answer; that of step 2 arrives in step 4
    assert bench.played() == [0, 1, 2, 3, 22, 23]
    assert summary.num_missed == 0
    policy = HeldPolicy(chunk_size=4)
    policy.errors[0] = PolicyUnavailableError("the server is gone")
    bench = Bench(policy, {1})
    bench.run(3)
    assert [step.missing for step in bench.steps] == ["starting", "unavailable", "unavailable"]


def test_a_reset_under_way_drops_the_old_answer_and_reaches_the_policy_before_the_next() -> None:
    policy, clock = HeldPolicy(), FakeClock()
    controller = Overlapped(policy, clock=clock)
    robot = Robot()
    controller.reset("one")
    assert controller.control(robot.observe()).missing == "starting"
    controller.reset("two")
    assert policy.instructions == ["one"], "the policy is busy"
    _release(controller, policy)
    assert controller.needs_observation
    assert controller.control(robot.observe()).inference is None, "nobody wants the old answer"
    _release(controller, policy)
    step = controller.control(robot.observe())
    assert policy.instructions == ["one", "two"]
    assert (step.missing, step.age_steps, round(float(step.action[0]) * 100)) == (None, 1, 1)
    controller.reset("three")  # the inference of the last frame runs: told before the next
    _release(controller, policy)
    controller.reset("four")  # it has ended: told at once
    assert policy.instructions[-1] == "four"
    controller.close()


def test_a_reset_that_found_no_server_is_done_again() -> None:
    class Unreachable(HeldPolicy):
        num_failures = 0

        def reset(self, instruction: str) -> None:
            if instruction == "two" and self.num_failures == 0:
                self.num_failures += 1
                raise PolicyUnavailableError("the server is gone")
            super().reset(instruction)

    policy, robot = Unreachable(), Robot()
    controller = Overlapped(policy, clock=FakeClock())
    controller.reset("one")
    controller.control(robot.observe())
    controller.reset("two")
    _release(controller, policy)
    controller.control(robot.observe())  # the old answer is dropped, the new instruction handed over
    concurrent.futures.wait([controller._running])  # type: ignore[list-item]
    assert controller.control(robot.observe()).missing == "unavailable"
    _release(controller, policy)
    assert controller.control(robot.observe()).missing is None
    assert policy.instructions == ["one", "two"]
    policy.released.release()
    controller.close()


def test_a_recorded_run_arrives_in_the_same_steps() -> None:
    live = Bench(HeldPolicy(), {2, 7, 8})
    live.run(12)
    arrivals = {s.index: s.index - s.age_steps for s in live.steps if s.inference is not None}
    assert arrivals == {2: 0, 7: 2, 8: 7}
    again = Bench(HeldPolicy(), set(), arrivals=arrivals)
    for _ in range(9):
        again.policy.released.release()  # as fast as it can: the record decides when an answer counts
    again.run(12)
    np.testing.assert_array_equal(again.robot.actions, live.robot.actions)
    assert [s.missing for s in again.steps] == [s.missing for s in live.steps]


def test_what_cannot_overlap_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with raises(ConfigError, "mode overlapped", got="a policy with chunk_size 1", expected="2 or more actions..."):
        make_controller(CountingPolicy(chunk_size=1), "overlapped")
    with raises(ConfigError, "execute_steps", got=4, expected="1 to 3 (chunk_size)"):
        make_controller(CountingPolicy(chunk_size=4), "overlapped", 4)
    with raises(ConfigError, "ensemble", got="overlapped mode"):
        make_controller(CountingPolicy(), "overlapped", ensemble=0.01)
    with caplog.at_level(logging.WARNING):
        make_controller(CountingPolicy(frame_stride=3), "overlapped").close()
    assert not caplog.messages, "the default distance is the policy's own"
