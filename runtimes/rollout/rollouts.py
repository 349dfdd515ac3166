"""Runs a bundle in a simulator for some episodes and records success and latency in one document.

Speed and success come from the same calls here, because a latency without the success of the same bundle says little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import TypeAdapter

from rfedge.bundle.artifact import MANIFEST_NAME, hash_file
from rfedge.envs import Environment
from rfedge.records.machine import library_versions
from rfedge.records.record import Record
from rfedge.records.resources import ResourceRecord
from rfedge.records.statistics import Summary, summarise
from rfedge.robot.conventions import conventions_of
from rfedge.runtimes.control.clock import RateKeeper
from rfedge.runtimes.control.controllers import choose_loop, make_controller
from rfedge.runtimes.control.loop import STOPPED, ControlLoop, LoopSummary
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.control.robot import SimulatedRobot
from rfedge.runtimes.control.safety import SafetyGuard
from rfedge.runtimes.control.stopping import StopRequest
from rfedge.runtimes.policy.edge_policy import STAGES, EdgePolicy
from rfedge.runtimes.rollout import Rollout, RolloutRecord, roll_out
from rfedge.runtimes.rollout.plan import RolloutPlan
from rfedge.runtimes.rollout.policy_source import open_policy
from rfedge.runtimes.rollout.rollout_session import begin_episode, choose_goal
from rfedge.runtimes.rollout.run_record import RunHeader, RunRecorder

if TYPE_CHECKING:
    from rfedge.machine.power.sampler import Sampler
    from rfedge.runtimes.rollout.rerun_log import RerunLog
    from rfedge.runtimes.rollout.video import VideoRecorder


class RunFiles:
    """Film, record and the viewer's file of one run, those that the plan names; `stack` closes them."""

    def __init__(self, stack: ExitStack, plan: RolloutPlan, environment: Environment, rate_hz: float | None) -> None:
        self._film: VideoRecorder | None = None
        self._rerun: RerunLog | None = None
        self.recorder: RunRecorder | None = None
        if plan.video is not None:
            from rfedge.runtimes.rollout.video import VideoRecorder

            self._film = VideoRecorder(plan.video, rate_hz or environment.control_hz)
        if plan.record is not None and plan.bundle is not None:
            header = RunHeader(
                recorded_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                bundle=str(plan.bundle.resolve()),
                manifest_sha256=hash_file(plan.bundle / MANIFEST_NAME),
                mode=str(plan.mode),
                plan=TypeAdapter(RolloutPlan).dump_python(plan, mode="json"),
                environment={
                    "name": plan.env,
                    "scene": environment.scene,
                    "renderer": environment.renderer,
                    "looks": environment.looks,
                    "control_hz": environment.control_hz,
                    "rate_hz": rate_hz,
                },
                versions=library_versions(),
            )
            self.recorder = stack.enter_context(RunRecorder(plan.record, header, with_frames=plan.record_frames))
        if plan.rerun is not None:
            from rfedge.runtimes.rollout.rerun_log import RerunLog

            self._rerun = stack.enter_context(RerunLog(plan.rerun))

    @contextmanager
    def episode(self, episode: int, *, seed: int, instruction: str) -> Iterator[None]:
        """Write that an episode begins and, if it ends in an error, which."""
        if self.recorder is not None:
            self.recorder.begin_episode(episode, seed=seed, instruction=instruction)
        try:
            yield
        except BaseException as error:
            if self.recorder is not None:
                self.recorder.fail(error)
            raise

    def add(self, step: ControlStep) -> None:
        if self._film is not None and step.observation is not None:
            self._film.add(step.observation)
        for file in (self.recorder, self._rerun):
            if file is not None:
                file.add(step)

    def end_episode(self, summary: LoopSummary) -> None:
        if self.recorder is not None:
            self.recorder.end_episode(summary)

    def write_film(self) -> None:
        if self._film is not None:
            self._film.write()


class RolloutReport(Record):
    format: Literal["rfedge-rollouts"] = "rfedge-rollouts"
    schema_version: int = 3
    bundle: str  # its folder, or the address of the server
    policy: str
    precision: str
    forced_past: tuple[str, ...] = ()  # thresholds of the export that the bundle missed and was written in spite of
    settings: dict[str, str]  # what the backbone's backend reported about itself
    mode: str
    execute_steps: int  # actions played per inference; in overlapped mode the least number of steps between two frames
    environment: str
    scene: str
    renderer: str
    control_hz: float  # of the environment; `rate_hz` is the one that was held, None if none was
    realtime: bool
    rate_hz: float | None
    realtime_priority: int | None = None
    stopped_by: str | None  # the signal that ended the run before its last episode, or None
    task: str | None
    instruction: str
    episodes: tuple[RolloutRecord, ...]
    per_call_ms: dict[str, Summary]  # per stage, over all inferences of all episodes; empty when none ended
    mean_per_control_step_ms: dict[str, float]  # per stage, all its time over all control steps
    # what all of it took, the simulator in this process included; None where it was not asked for
    resources: ResourceRecord | None = None
    record_error: str | None = None  # why the record ends before the run does; None where it does not
    looks: str | None = None  # what the images showed; None in records that are older than the field

    @property
    def was_stopped(self) -> bool:
        """Whether the loop stopped the robot: too many misses in a row, a frozen camera, or a hung step."""
        return any(episode.ended in STOPPED for episode in self.episodes)


def run_rollouts(
    plan: RolloutPlan,
    *,
    on_load: Callable[[EdgePolicy], None] = lambda _: None,
    on_step: Callable[[int, ControlStep], None] = lambda *_: None,
    stop: StopRequest | None = None,
) -> RolloutReport:
    """Run every episode and write film and record if they are wanted.

    `on_load` is called with the loaded bundle before the simulator is opened, `on_step` with (episode from 0, step) after
    each control step.

    Raises:
        ArtifactError: the bundle cannot be loaded.
        PolicyUnavailableError: the server cannot be reached at the start.
        ContractError: the bundle does not know the instruction, or its action is not finite.
        ConfigError: mode, execute_steps, task, environment, scene or a file's name is not possible.
        BackendUnavailableError: the simulator or the film writer is not installed.
    """
    goal, stop = choose_goal(plan.task, plan.instruction), stop or StopRequest()
    with ExitStack() as stack:
        sampler: Sampler | None = None
        if plan.resources:
            from rfedge.machine.power.sampler import Sampler  # here: most runs need no meter

            sampler = stack.enter_context(Sampler())
        opened = open_policy(stack, plan, on_load)
        mode, execute_steps = choose_loop(opened.policy, plan.mode, plan.execute_steps)
        plan = replace(plan, mode=mode, execute_steps=execute_steps)
        controller = make_controller(opened.policy, mode, execute_steps, ensemble=plan.ensemble)
        stack.callback(controller.close)
        opened.policy.reset(goal.instruction)  # words that the policy does not know end here, not after a simulator's start
        environment = stack.enter_context(plan.open_environment())
        own_hz = conventions_of(controller).control_hz or float(environment.control_hz)
        rate_hz = (plan.rate_hz or own_hz * plan.speed) if plan.holds_rate else None
        files = RunFiles(stack, plan, environment, rate_hz)
        guard = SafetyGuard(plan.limits)
        rollouts: list[Rollout] = []
        for episode in range(plan.episodes):
            seed = plan.seed + episode
            loop = ControlLoop(
                controller,
                SimulatedRobot(environment),
                pace=None if rate_hz is None else RateKeeper(rate_hz),
                late=plan.late,
                guard=guard,
                backbone_deadline_s=None if plan.backbone_deadline_ms is None else plan.backbone_deadline_ms / 1000,
                stop=stop,
                priority=plan.realtime_priority,
                speed=plan.speed,
                stop_after_frozen=plan.stop_after_frozen,
                step_deadline_s=plan.step_deadline_s,
                cancel=opened.cancel,
            )
            with files.episode(episode, seed=seed, instruction=goal.instruction):
                rollout = roll_out(
                    loop,
                    goal,
                    max_steps=plan.max_steps,
                    success=begin_episode(environment, goal, seed),
                    on_step=partial(_report_step, files, on_step, episode),
                    observe_every_step=plan.observes_every_step,
                    seed=seed,
                )
            files.end_episode(rollout.record)
            rollouts.append(rollout)
            if stop.reason is not None or rollout.record.ended in STOPPED:
                break
        files.write_film()
        num_actions = sum(len(rollout.actions) for rollout in rollouts)
        return RolloutReport(
            bundle=opened.source,
            policy=opened.name,
            precision=opened.precision,
            forced_past=opened.forced_past,
            settings=opened.settings,
            mode=mode,
            execute_steps=execute_steps,
            environment=plan.env,
            scene=plan.scene,
            renderer=environment.renderer,
            looks=environment.looks,
            control_hz=environment.control_hz,
            realtime=plan.realtime,
            rate_hz=rate_hz,
            realtime_priority=plan.realtime_priority,
            stopped_by=stop.reason,
            task=goal.task,
            instruction=goal.instruction,
            episodes=tuple(rollout.record for rollout in rollouts),
            per_call_ms={stage: summarise(np.array(samples)) for stage in STAGES if (samples := _gather(rollouts, stage))},
            mean_per_control_step_ms={
                stage: sum(samples) / num_actions for stage in STAGES if (samples := _gather(rollouts, stage))
            },
            resources=None if sampler is None else sampler.summary(num_actions),
            record_error=None if files.recorder is None else files.recorder.error,
        )


def _report_step(files: RunFiles, on_step: Callable[[int, ControlStep], None], episode: int, step: ControlStep) -> None:
    files.add(step)
    on_step(episode, step)


def _gather(rollouts: Iterable[Rollout], stage: str) -> list[float]:
    return [duration_ms for rollout in rollouts for duration_ms in rollout.timings_ms.get(stage, ())]
