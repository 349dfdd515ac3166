"""The control loop: observes, asks the controller, guards its action, sends it, and always ends with a robot that rests.

However a run ends (success, last step, too many misses, a hung backbone or robot, a signal, an error), `Robot.stop` was
called: zero motion, gripper as it was.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from rfedge.arrays import Float32
from rfedge.errors import ConfigError, PolicyUnavailableError
from rfedge.messages import Observation
from rfedge.robot.conventions import Conventions, conventions_of, refuse_disagreement
from rfedge.runtimes.control.clock import Clock, MonotonicClock, Pace, RateKeeper
from rfedge.runtimes.control.limits import LatePolicy
from rfedge.runtimes.control.modes import Controller, ControlStep, Missing
from rfedge.runtimes.control.resting import Rest, driving
from rfedge.runtimes.control.robot import HeartbeatRobot, Robot, SimulatedRobot
from rfedge.runtimes.control.safety import INTERVENTIONS, SafetyGuard, not_finite
from rfedge.runtimes.control.scheduling import realtime_priority
from rfedge.runtimes.control.stillness import FrozenFrames
from rfedge.runtimes.control.stopping import StopRequest
from rfedge.runtimes.control.watchdog import Watchdog

__all__ = ["STOPPED", "ControlLoop", "Ending", "LoopSummary"]

# success, max-steps, misses (too many in a row), frozen (a camera that repeats its picture), backbone (an inference beyond
# its deadline), step (anything else in a control step beyond its own), or the reason of a `StopRequest`, such as SIGTERM.
Ending = str
STOPPED: Final = ("misses", "frozen", "backbone", "step")
# Of a step beyond the backbone's deadline, where nothing else is said: cameras, robot, recorder and success check.
_STEP_SLACK_S: Final = 2.0
# Where nothing else is said the first step has longer: the arm stands, and libraries load what they did not load before.
_FIRST_STEP_S: Final = 30.0
_MS_PER_S: Final = 1000.0


@dataclass(frozen=True, slots=True)
class LoopSummary:
    """Summary of a run; its size does not depend on its length."""

    ended: Ending  # see `Ending`
    success: bool | None  # None when nobody checked
    num_steps: int
    num_inferences: int
    num_missed: int  # steps without an action in time: starved, unavailable or late
    num_starved: int  # of them, those whose overlapped chunk was used up
    num_unavailable: int  # of them, those in which the policy had no answer
    num_starting: int  # before the first chunk of an overlapped run
    interventions: dict[str, int]  # by kind; kinds that did not happen are left out
    max_lag_s: float
    max_age_ms: float  # of the frame behind an action
    # camera -> frames with the very picture of the frame before; a real camera never has two equal ones
    frozen: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class ControlLoop:
    """A controller, a robot and what stands between them.

    Attributes:
        pace: says when a step begins; None runs as fast as it goes and never misses.
        backbone_deadline_s: longest an inference may take before the robot is stopped; None is the step's deadline.
        priority: of the thread while it runs, see `rfedge.runtimes.control.scheduling`; None is ordinary.
        step_deadline_s: longest a whole control step may take before the robot is stopped, `on_step` and `success`
            included. None is `backbone_deadline_s` and two seconds, or two seconds where a rate is held, else no limit. A
            first step, which finds the arm at rest, has 30 seconds unless this says otherwise.
        heartbeat_s: passed to the robot, which then rests by itself when no action comes for so long; None for none.
        cancel: called from another thread once the robot was stopped in a step that hangs, such as `EdgePolicy.cancel`.
        stop_after_frozen: ends the run when a camera has shown one picture in so many more frames in a row; None never does.
        speed: share of the policy's own rate that `pace` holds, for slow first runs.

    Raises:
        ConfigError: `stop_after_frozen` is below 1.
    """

    controller: Controller
    robot: Robot
    pace: Pace | None = None
    late: LatePolicy = field(default_factory=LatePolicy)
    guard: SafetyGuard = field(default_factory=SafetyGuard)
    backbone_deadline_s: float | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    clock: Clock = field(default_factory=MonotonicClock)
    priority: int | None = None
    step_deadline_s: float | None = None
    heartbeat_s: float | None = None
    cancel: Callable[[], None] | None = None
    stop_after_frozen: int | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.stop_after_frozen is not None and self.stop_after_frozen < 1:
            remedy = "Leave --stop-after-frozen out to go on for ever."
            raise ConfigError("stop_after_frozen", got=self.stop_after_frozen, expected="1 or more", remedy=remedy)

    def run(
        self,
        instruction: str | Callable[[], str],
        *,
        max_steps: int,
        success: Callable[[], bool] | None = None,
        on_step: Callable[[ControlStep], None] | None = None,
        observe_every_step: bool = False,
    ) -> LoopSummary:
        """Run until success, the last step or a reason to stop; the robot is at its start.

        Args:
            instruction: plain words, or asked for before every step; the controller is reset whenever it changes.
            success: asked after each step; None when nobody can check.
            on_step: called with each step after its action was sent.
            observe_every_step: take a frame on every step for `on_step`, needed or not.

        Raises:
            ContractError: the policy refuses a frame, or its action is not finite; zero motion was sent then.
            ConfigError: another loop drives this robot, it has no heartbeat, or rates or cameras disagree; nothing was sent.
            BackendUnavailableError: this user may not have `priority`; nothing was sent but a stop.
        """
        self._check_conventions()
        rest = Rest(self.robot)

        def on_expired() -> None:
            with self.stop.step_hangs():
                try:
                    rest()
                finally:
                    if self.cancel is not None:
                        self.cancel()

        watchdog = Watchdog({"backbone": self.backbone_deadline_s, "step": self._step_deadline_s()}, on_expired, self.clock)
        ask = instruction if callable(instruction) else lambda: instruction
        run = _Run(self, watchdog, ask, on_step, observe_every_step, dict(self.guard.counts))
        self.guard.reset()
        ended: Ending | None = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(driving(self.robot))
            self._start_heartbeat()
            stack.enter_context(self.stop.heard_by(watchdog.expire))
            stack.callback(rest)  # whatever happens from here on
            if self.pace is not None:
                # Kept out of the collector's sight: to scan all that exists now takes longer than some steps have.
                gc.freeze()
                stack.callback(gc.unfreeze)
            # Before the loop, or on one core it would wait for what it watches.
            with realtime_priority(None if self.priority is None else self.priority + 1, inherited=True):
                stack.enter_context(watchdog)
            stack.enter_context(realtime_priority(self.priority))
            for index in range(max_steps):
                lag_s = 0.0 if self.pace is None else self.pace.wait()
                ended = self.stop.reason
                if ended is None:
                    at_least_s = _FIRST_STEP_S if index == 0 and self.step_deadline_s is None else 0.0
                    with watchdog.watching("step", at_least_s=at_least_s):
                        ended = run.step(index, lag_s) or ("success" if success is not None and success() else None)
                    ended = watchdog.expired or ended
                if ended is not None:
                    break
        ended = ended or "max-steps"
        if ended == "backbone" and self.cancel is not None:
            self.cancel()  # of a call beside the loop, which the watchdog does not watch
        return run.summary(ended, None if success is None else ended == "success")

    def _step_deadline_s(self) -> float | None:
        if self.step_deadline_s is not None or (self.pace is None and self.backbone_deadline_s is None):
            return self.step_deadline_s
        return (self.backbone_deadline_s or 0.0) + _STEP_SLACK_S

    def _start_heartbeat(self) -> None:
        if self.heartbeat_s is None:
            return
        if not isinstance(self.robot, HeartbeatRobot):
            raise ConfigError(
                "heartbeat_s",
                got=f"a {type(self.robot).__name__} without expect_actions",
                expected="a robot that rests by itself",
                remedy="Leave it out, or see rfedge.runtimes.control.robot.HeartbeatRobot.",
            )
        self.robot.expect_actions(self.heartbeat_s)

    def _check_conventions(self) -> None:
        own, robot = conventions_of(self.controller), conventions_of(self.robot)
        loop_hz = None if own.control_hz is None else own.control_hz * self.speed
        owner = "the policy" if self.speed == 1.0 else f"the policy at speed {self.speed:g}"
        expected = Conventions(loop_hz, own.resize)
        if isinstance(self.pace, RateKeeper):
            refuse_disagreement("the loop", Conventions(self.pace.rate_hz), owner, expected)
        if isinstance(self.robot, SimulatedRobot):  # its time passes with actions, whatever the pace on the wall clock
            owner, expected = "the policy", own
        refuse_disagreement("the robot", robot, owner, expected)


@dataclass(slots=True, eq=False)
class _Run:
    """The moving parts of one `ControlLoop.run`."""

    loop: ControlLoop
    watchdog: Watchdog
    instruction: Callable[[], str]
    on_step: Callable[[ControlStep], None] | None
    observe_every_step: bool
    counts_before: dict[str, int]  # of the guard
    followed: str | None = None
    frame_times_s: dict[int, float] = field(default_factory=dict)
    last_sent: Float32 | None = None  # under the present instruction
    num_repeats: int = 0  # in a row
    num_steps: int = 0
    num_inferences: int = 0
    num_missed: int = 0
    num_missing: dict[Missing, int] = field(default_factory=lambda: {"starting": 0, "starved": 0, "unavailable": 0})
    misses_in_a_row: int = 0
    max_lag_s: float = 0.0
    max_age_ms: float = 0.0
    frozen: FrozenFrames = field(default_factory=FrozenFrames)

    def step(self, index: int, lag_s: float) -> Ending | None:
        """Run one control step, which began `lag_s` late; return why the run ends with it."""
        loop = self.loop
        started_s = loop.clock.now_s()
        instruction: str | None = None
        observation: Observation | None = None
        try:
            instruction = self._follow()
            observation = self._observe(index, started_s)
            if loop.stop_after_frozen is not None and self.frozen.longest >= loop.stop_after_frozen:
                return "frozen"
            with self.watchdog.watching("backbone"):
                control = loop.controller.control(observation)
            if loop.backbone_deadline_s is not None and control.pending_s > loop.backbone_deadline_s:
                return "backbone"
        except PolicyUnavailableError:
            control = ControlStep(action=loop.guard.hold(), inference=None, missing="unavailable")
        overdue_s = 0.0 if loop.pace is None else loop.pace.overdue_s()
        is_missed = overdue_s > 0.0 or control.missing not in (None, "starting")
        action, interventions = self._choose(control, is_missed=is_missed)
        if self.watchdog.expired is not None:
            return self.watchdog.expired  # the robot was stopped: it gets nothing more
        loop.robot.apply(action)
        sent_s = loop.clock.now_s()
        loop.guard.sent(action)
        self.last_sent = action
        taken_s = self.frame_times_s.get(index - control.age_steps, started_s)
        age_ms = 0.0 if control.missing else _MS_PER_S * (sent_s - taken_s)
        step = replace(
            control,
            index=index,
            observation=observation,
            lag_s=lag_s,
            sent=action,
            interventions=interventions,
            overdue_s=overdue_s,
            is_missed=is_missed,
            age_ms=age_ms,
            elapsed_ms=_MS_PER_S * (sent_s - started_s),
            instruction=instruction,
        )
        self._count(step)
        if self.on_step is not None:
            self.on_step(step)
        if "not-finite" in interventions:
            raise not_finite()
        limit = loop.late.stop_after_misses
        return "misses" if limit is not None and self.misses_in_a_row >= limit else None

    def _follow(self) -> str | None:
        """Reset the controller if the instruction changed; return the new one."""
        instruction = self.instruction()
        if instruction == self.followed:
            return None
        self.last_sent = None  # also if the reset fails: it was an action of another instruction
        self.loop.controller.reset(instruction)
        self.followed = instruction
        return instruction

    def _observe(self, index: int, started_s: float) -> Observation | None:
        needs = self.loop.controller.needs_observation
        if not needs and not self.observe_every_step:
            return None
        observation = self.loop.robot.observe()
        self.loop.guard.see(observation)
        self.frozen.see(observation)
        if needs:
            self.frame_times_s[index] = started_s
        return observation

    def _choose(self, control: ControlStep, *, is_missed: bool) -> tuple[Float32, tuple[str, ...]]:
        """Return what is sent and what the guard did to it."""
        loop = self.loop
        wanted: Float32 | None = control.action if control.missing is None else None
        repeats = False
        if is_missed and loop.late.action != "send":
            repeats = (
                loop.late.action == "repeat"
                and control.missing != "unavailable"
                and self.num_repeats < loop.late.max_repeats
            )
            wanted = self.last_sent if repeats else None
        self.num_repeats = self.num_repeats + 1 if is_missed else 0
        if wanted is None:
            return loop.guard.hold(), ()
        checked = loop.guard.check(wanted)
        return checked.action, checked.interventions

    def _count(self, step: ControlStep) -> None:
        self.num_steps += 1
        self.num_inferences += step.inference is not None
        self.num_missed += step.is_missed
        if step.missing is not None:
            self.num_missing[step.missing] += 1
        self.misses_in_a_row = self.misses_in_a_row + 1 if step.is_missed else 0
        self.max_lag_s = max(self.max_lag_s, step.lag_s)
        self.max_age_ms = max(self.max_age_ms, step.age_ms)
        # Older frames than the one behind this action are behind no later one.
        oldest = step.index - step.age_steps
        if len(self.frame_times_s) > 1 and not step.missing:
            for index in [index for index in self.frame_times_s if index < oldest]:
                del self.frame_times_s[index]

    def summary(self, ended: Ending, success: bool | None) -> LoopSummary:  # noqa: FBT001 - private, passed once
        counts = self.loop.guard.counts
        happened = {name: counts[name] - self.counts_before[name] for name in INTERVENTIONS}
        return LoopSummary(
            ended=ended,
            success=success,
            num_steps=self.num_steps,
            num_inferences=self.num_inferences,
            num_missed=self.num_missed,
            num_starved=self.num_missing["starved"],
            num_unavailable=self.num_missing["unavailable"],
            num_starting=self.num_missing["starting"],
            interventions={name: count for name, count in happened.items() if count},
            max_lag_s=self.max_lag_s,
            max_age_ms=self.max_age_ms,
            frozen=self.frozen.counts,
        )
