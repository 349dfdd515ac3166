"""Overlapped open loop: the next inference runs in a worker thread while the present chunk plays.

The loop keeps its rate although an inference takes several control steps. The price is age: a chunk that was computed
from the frame of control step s arrives some steps later, its first actions belong to steps that are over, and it is
played from action `now - s`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Final

from rfedge.errors import ConfigError, PolicyUnavailableError
from rfedge.messages import GRIPPER_KEEP, GRIPPER_OPEN, POSE_SIZE, Observation
from rfedge.robot.conventions import Conventions, conventions_of
from rfedge.runtimes.control.clock import Clock, MonotonicClock
from rfedge.runtimes.control.modes import ControlStep, Missing, check_execute_steps, warn_of_time_base
from rfedge.runtimes.control.safety import hold_action
from rfedge.runtimes.policy.step import Policy, PolicyStep

__all__ = ["Arrivals", "Overlapped"]

# control step in which a chunk arrived -> control step of its frame, both counted over the controller's whole life
Arrivals = Mapping[int, int]
# A hung inference cannot be ended from outside; its thread is left behind after this long, and ends with the process.
_CLOSING_S: Final = 2.0


class Overlapped:
    """Plays one chunk while the next is computed. Call `close` when done with it.

    A new frame is taken as soon as the worker is free and `execute_steps` control steps (None: the policy's stride) have
    passed since the last one. A chunk replaces the one before it when it arrives, also in the middle: it has seen more.
    When a chunk is used up and the next one has not arrived, the step says so (`ControlStep.missing`).

    Frames are handed to another thread: a robot must not write into arrays that it has returned. With the `arrivals` of a
    recorded run chunks arrive in exactly these steps, which are waited for.

    Raises:
        ConfigError: the chunk has a single action, or `execute_steps` does not fit it.
    """

    def __init__(
        self,
        policy: Policy,
        execute_steps: int | None = None,
        *,
        clock: Clock | None = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        if policy.chunk_size < 2:
            raise ConfigError(
                "mode overlapped",
                got="a policy with chunk_size 1",
                expected="2 or more actions per inference: the first are over when they arrive",
                remedy="Use a policy trained with a longer chunk, or another --mode.",
            )
        self._execute_steps = policy.frame_stride if execute_steps is None else execute_steps
        check_execute_steps(self._execute_steps, policy.chunk_size - 1)
        warn_of_time_base(self._execute_steps, policy.frame_stride)
        self._policy = policy
        self._clock = clock or MonotonicClock()
        self._arrivals = arrivals
        self._worker = _Worker()
        self._step = 0
        self._polled_step = -1
        self._running: Future[PolicyStep] | None = None
        self._is_outdated = False  # the running inference belongs to an instruction before the last reset
        self._queued_reset: str | None = None  # to be done by the worker before its next inference
        self._handed_reset: str | None = None  # done by the worker before the running one
        self._begin()

    def _begin(self) -> None:
        self._arrived: PolicyStep | None = None
        self._is_unavailable = False  # the last answer was that there is none
        self._chunk: PolicyStep | None = None
        self._chunk_step = 0  # control step of the frame behind `_chunk`
        self._frame_step: int | None = None  # control step of the last frame that was handed over
        self._started_s = 0.0
        self._gripper = GRIPPER_KEEP

    @property
    def conventions(self) -> Conventions:
        return conventions_of(self._policy)

    @property
    def needs_observation(self) -> bool:
        self._poll()
        if self._arrivals is not None:
            return self._step in self._arrivals.values()
        waited = self._frame_step is None or self._step - self._frame_step >= self._execute_steps
        return self._running is None and waited

    def reset(self, instruction: str) -> None:
        """Drop every chunk and reset the policy, now if the worker rests, else when its present inference has ended.

        If the worker is busy, a refusal of the instruction is raised by the next `control` calls.
        """
        if self._running is not None and not self._running.done():
            self._is_outdated, self._queued_reset = True, instruction
        else:
            self._running, self._is_outdated, self._queued_reset = None, False, None
            self._policy.reset(instruction)
        self._begin()

    def control(self, observation: Observation | None) -> ControlStep:
        """Return the action for this step and hand `observation` to the worker if it waits for one.

        Raises ContractError where the policy refused an earlier frame.
        """
        takes_frame = self.needs_observation and observation is not None
        if takes_frame and observation is not None:
            self._hand_over(observation)
        inference, self._arrived = self._arrived, None
        age_steps = self._step - self._chunk_step
        self._step += 1
        pending_s = 0.0 if self._running is None else self._clock.now_s() - self._started_s
        missing: Missing | None = None
        if self._chunk is None:
            missing, age_steps = "unavailable" if self._is_unavailable else "starting", 0
        elif age_steps >= len(self._chunk.actions):
            missing = "unavailable" if self._is_unavailable else "starved"
        if self._chunk is None or missing is not None:
            action = hold_action(self._gripper)
        else:
            action = self._chunk.actions[age_steps]
            self._gripper = GRIPPER_OPEN if action[POSE_SIZE] > 0 else -GRIPPER_OPEN
        return ControlStep(action=action, inference=inference, age_steps=age_steps, missing=missing, pending_s=pending_s)

    def close(self) -> None:
        """End the worker after its present inference, waiting for it a short while; a second call does nothing."""
        self._worker.close()

    def _poll(self) -> None:
        """Take the worker's answer, once per control step."""
        if self._polled_step == self._step:
            return
        self._polled_step = self._step
        if self._running is None or not self._is_due(self._running):
            return
        answer, self._running = self._running, None
        if self._is_outdated:
            self._is_outdated = False
            answer.exception()  # read and dropped: it belongs to the instruction before
            return
        try:
            self._chunk = self._arrived = answer.result()
        except PolicyUnavailableError:
            # The chunk that plays goes on; the next frame asks again, after the reset if that was what failed.
            self._is_unavailable, self._queued_reset = True, self._handed_reset
            return
        self._is_unavailable = False
        self._chunk_step = self._frame_step or 0

    def _is_due(self, running: Future[PolicyStep]) -> bool:
        if self._arrivals is None:
            return running.done()
        # In a replay the record decides when an answer counts, and the replay waits for it.
        steps = self._arrivals.values() if self._is_outdated else self._arrivals
        if self._step not in steps:
            return False
        running.exception()
        return True

    def _hand_over(self, observation: Observation) -> None:
        instruction = self._handed_reset = self._queued_reset
        self._queued_reset = None

        def infer() -> PolicyStep:
            if instruction is not None:
                self._policy.reset(instruction)
            return self._policy.act(observation)

        self._frame_step = self._step
        self._started_s = self._clock.now_s()
        self._running = self._worker.submit(infer)


class _Worker:
    """One daemon thread: unlike that of an executor it never keeps a process alive that wants to end."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], PolicyStep], Future[PolicyStep]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rfedge-inference", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], PolicyStep]) -> Future[PolicyStep]:
        answer: Future[PolicyStep] = Future()
        self._jobs.put((job, answer))
        return answer

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(_CLOSING_S)

    def _run(self) -> None:
        while (task := self._jobs.get()) is not None:
            job, answer = task
            try:
                answer.set_result(job())
            except Exception as error:
                answer.set_exception(error)
