"""Runs a bundle in a simulator for some episodes and records success and latency in one document.

Speed and success come from the same calls here, because a latency without the success of the same bundle says little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import TypeAdapter, model_validator

from rfedge.envs import Environment, make_environment
from rfedge.envs.looks import Looks, Renderer
from rfedge.errors import ConfigError
from rfedge.machine.power.sampler import Sampler
from rfedge.records.plan import check_least
from rfedge.records.record import Record
from rfedge.records.statistics import Summary, summarise
from rfedge.robot.conventions import conventions_of
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import DEFAULT_BACKEND
from rfedge.runtimes.control.clock import Pace, RateKeeper
from rfedge.runtimes.control.controllers import choose_loop, make_controller
from rfedge.runtimes.control.lateness import LatePolicy
from rfedge.runtimes.control.limits import MAX_STEPS
from rfedge.runtimes.control.loop import STOPPED, ControlLoop, StepReport
from rfedge.runtimes.control.modes import Controller
from rfedge.runtimes.control.robot import SimulatedRobot
from rfedge.runtimes.control.safety import SafetyGuard, SafetyLimits
from rfedge.runtimes.control.scheduling import check_priority
from rfedge.runtimes.control.stopping import StopRequest
from rfedge.runtimes.policy.edge_policy import STAGES, EdgePolicy
from rfedge.runtimes.rollout import Goal, Rollout, RolloutRecord, roll_out
from rfedge.runtimes.rollout.episode import begin_episode, choose_goal
from rfedge.runtimes.rollout.policy_source import ServerAddress, check_source, open_policy
from rfedge.runtimes.rollout.resources import ResourceRecord
from rfedge.runtimes.rollout.run_files import RunFiles, run_header
from rfedge.runtimes.rollout.run_record import RecordedPace, RunRecord, StepLine

__all__ = ["RolloutPlan", "RolloutReport", "run_rollouts"]

ROLLOUT_SCHEMA_VERSION: Final = 3


@dataclass(frozen=True)
class RolloutPlan:
    """What to run; the fields are the flags of `rfedge run`.

    Attributes:
        bundle, server: where the policy is, one of the two; a run with a server always holds the rate.
        mode, execute_steps: see `rfedge.runtimes.control.controllers.choose_loop`.
        ensemble: decay of a temporal ensemble, or None.
        looks, renderer: see `make_environment`.
        task, instruction: at least one of them; see `rfedge.runtimes.rollout.episode.choose_goal`.
        seed: of the first episode's start, see `rfedge.envs.experts.prepare_start`; the next have seed + 1, seed + 2, ...
        realtime: hold the control rate; overlapped mode and a `rate_hz` mean it anyway.
        rate_hz: control steps per second; None is the policy's own times `speed`, and another one is refused.
        speed: share of the policy's own rate, for slow or fast motion on the wall clock.
        realtime_priority: of the control loop's thread, see `rfedge.runtimes.control.scheduling`; None is ordinary.
        late: what happens on a missed step; there are none unless a rate is held.
        stop_after_frozen: the run ends when a camera has repeated its picture in so many frames in a row; None goes on.
        limits: what the actions are held to.
        backbone_deadline_ms: the robot is stopped when an inference takes longer; None is the step's deadline.
        step_deadline_ms: the same of a whole control step; None is two seconds beyond what an inference may take, where a
            rate is held or the backbone has a deadline, and else no limit.
        video: where to write what the cameras saw, or None.
        record: where to write every step, or None; `record_frames` writes the frames beside it.
        rerun: where to write the same for the Rerun viewer, or None.
        resources: sample memory, power and temperature beside the run, loading included.
    """

    bundle: Path | None = None
    mode: str | None = None
    execute_steps: int | None = None
    ensemble: float | None = None
    env: str = "playtable"
    scene: str = "D"
    looks: Looks | None = None
    renderer: Renderer | None = None
    task: str | None = None
    instruction: str | None = None
    episodes: int = 1
    max_steps: int = MAX_STEPS
    seed: int = 0
    realtime: bool = False
    rate_hz: float | None = None
    speed: float = 1.0
    realtime_priority: int | None = None
    late: LatePolicy = field(default_factory=LatePolicy)
    stop_after_frozen: int | None = None
    limits: SafetyLimits = field(default_factory=SafetyLimits)
    backbone_deadline_ms: float | None = None
    step_deadline_ms: float | None = None
    video: Path | None = None
    record: Path | None = None
    record_frames: bool = False
    rerun: Path | None = None
    resources: bool = False
    settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    backend: str = DEFAULT_BACKEND
    server: ServerAddress | None = None

    def __post_init__(self) -> None:
        """Refuse a plan that runs nothing or asks for what it cannot have.

        Raises:
            ConfigError: no episode or no step, a late policy without a rate, frames without a record, neither bundle nor
                server or both, or the record of a policy that is not here.
        """
        check_source(self.bundle, self.server, self.record)
        check_least(1, {"episodes": self.episodes, "max_steps": self.max_steps})
        if not self.holds_rate and self.late != LatePolicy():
            raise ConfigError(
                "late", got="no control rate", expected="deadlines to miss", remedy="Pass --realtime or --rate-hz."
            )
        check_priority(self.realtime_priority)
        if not self.holds_rate and self.realtime_priority is not None:
            raise ConfigError(
                "realtime_priority",
                got="no control rate",
                expected="deadlines to keep",
                remedy="Pass --realtime or --rate-hz.",
            )
        if self.record_frames and self.record is None:
            raise ConfigError(
                "--record-frames", got="no record", expected="--record FILE", remedy="Pass it, or leave this out."
            )

    @property
    def step_deadline_s(self) -> float | None:
        """As `rfedge.runtimes.control.loop.ControlLoop` takes it; a server's deadline counts twice: reset and frame."""
        if self.step_deadline_ms is None and self.server is not None:
            return 2.0 * self.server.deadline_ms / 1000 + 2.0
        return None if self.step_deadline_ms is None else self.step_deadline_ms / 1000

    @property
    def holds_rate(self) -> bool:
        """Whether the run waits for deadlines."""
        asked = self.realtime or self.rate_hz is not None or self.speed != 1.0
        return asked or self.mode == "overlapped" or self.server is not None


class RolloutReport(Record):
    """The whole run.

    Attributes:
        forced_past: thresholds of the export that the bundle missed and was written in spite of.
        bundle: its folder, or the address of the server.
        settings: what the backbone's backend reported about itself.
        execute_steps: actions played per inference; in overlapped mode the least number of steps between two frames.
        control_hz: of the environment; `rate_hz` is the one that was held, None if none was.
        stopped_by: the signal that ended the run before its last episode, or None.
        per_call_ms: per stage, over all inferences of all episodes; empty when none ended.
        mean_per_control_step_ms: per stage, all its time over all control steps.
        resources: what all of it took, the simulator in this process included; None where it was not asked for.
        record_error: why the record ends before the run does; None where it does not.
        looks: what the images showed; None in records that are older than the field.
    """

    format: Literal["rfedge-rollouts"] = "rfedge-rollouts"
    schema_version: int = ROLLOUT_SCHEMA_VERSION
    bundle: str
    policy: str
    precision: str
    forced_past: tuple[str, ...] = ()
    settings: dict[str, str]
    mode: str
    execute_steps: int
    environment: str
    scene: str
    renderer: str
    control_hz: float
    realtime: bool
    rate_hz: float | None
    realtime_priority: int | None = None
    stopped_by: str | None
    task: str | None
    instruction: str
    episodes: tuple[RolloutRecord, ...]
    per_call_ms: dict[str, Summary]
    mean_per_control_step_ms: dict[str, float]
    resources: ResourceRecord | None = None
    record_error: str | None = None
    looks: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_version_2(cls, document: Any) -> Any:
        """Read episodes without task and instruction, and with lags in milliseconds."""
        if not isinstance(document, dict) or document.get("schema_version") != 2:
            return document
        goal = {name: document.get(name) for name in ("task", "instruction")}
        episodes = [
            {"max_lag_s": episode["max_lag_ms"] / 1000, **goal, **{k: v for k, v in episode.items() if k != "max_lag_ms"}}
            for episode in document["episodes"]
        ]
        return {**document, "episodes": episodes}

    @property
    def was_stopped(self) -> bool:
        """Whether the loop stopped the robot: too many misses in a row, a frozen camera, or a hung step."""
        return any(episode.ended in STOPPED for episode in self.episodes)

    @property
    def num_successes(self) -> int | None:
        """Episodes that succeeded; None when nobody could judge."""
        if self.task is None:
            return None
        return sum(episode.success is True for episode in self.episodes)


def run_rollouts(
    plan: RolloutPlan,
    *,
    on_load: Callable[[EdgePolicy], None] | None = None,
    on_step: Callable[[int, StepReport], None] | None = None,
    stop: StopRequest | None = None,
    record: RunRecord | None = None,
) -> RolloutReport:
    """Load the bundle, open the environment, run every episode and write film and record if they are wanted.

    Args:
        plan: what to run.
        on_load: called with the loaded bundle, before the simulator is opened.
        on_step: called with (episode from 0, step) after each control step.
        stop: ends the run between two steps.
        record: of a run of the same plan that is to be run again with its times: it is late, starved and told what to do
            where that was, holds no rate and writes nothing.

    Raises:
        ArtifactError: the bundle cannot be loaded.
        PolicyUnavailableError: the server cannot be reached at the start.
        ContractError: the bundle does not know the instruction, or its action is not finite.
        ConfigError: mode, execute_steps, task, environment, scene or a file's name is not possible.
        BackendUnavailableError: the simulator or the film writer is not installed.
    """
    goal = choose_goal(plan.task, plan.instruction)
    with ExitStack() as stack:
        sampler = stack.enter_context(Sampler()) if plan.resources and record is None else None
        opened = open_policy(stack, plan, on_load)
        mode, execute_steps = choose_loop(opened.policy, plan.mode, plan.execute_steps)
        plan = replace(plan, mode=mode, execute_steps=execute_steps)
        controller = make_controller(
            opened.policy,
            mode,
            execute_steps,
            ensemble=plan.ensemble,
            arrivals=None if record is None else record.arrivals(),
        )
        stack.callback(controller.close)
        opened.policy.reset(goal.instruction)  # words that the policy does not know end here, not after a simulator's start
        environment = stack.enter_context(
            make_environment(plan.env, looks=plan.looks, renderer=plan.renderer, scene=plan.scene, seed=plan.seed)
        )
        run = _Run(plan, goal, controller, environment, stop or StopRequest(), record, on_step, opened.cancel)
        stack.enter_context(run.files())
        rollouts = run.episodes()
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
            rate_hz=run.rate_hz,
            realtime_priority=plan.realtime_priority,
            stopped_by=run.stop.reason,
            task=goal.task,
            instruction=goal.instruction,
            episodes=tuple(rollout.record for rollout in rollouts),
            per_call_ms={stage: summarise(np.array(samples)) for stage in STAGES if (samples := _gather(rollouts, stage))},
            mean_per_control_step_ms={
                stage: sum(samples) / num_actions for stage in STAGES if (samples := _gather(rollouts, stage))
            },
            resources=None if sampler is None else ResourceRecord.of(sampler.summary(), num_actions),
            record_error=run.record_error,
        )


class _Run:
    """The episodes of one plan."""

    def __init__(
        self,
        plan: RolloutPlan,
        goal: Goal,
        controller: Controller,
        environment: Environment,
        stop: StopRequest,
        record: RunRecord | None,
        on_step: Callable[[int, StepReport], None] | None,
        cancel: Callable[[], None] | None,
    ) -> None:
        self.stop = stop
        self._cancel = cancel
        own_hz = conventions_of(controller).control_hz or float(environment.control_hz)
        self.rate_hz = (plan.rate_hz or own_hz * plan.speed) if plan.holds_rate and record is None else None
        self._plan = plan
        self._goal = goal
        self._controller = controller
        self._environment = environment
        self._record = record
        self._on_step = on_step
        self._guard = SafetyGuard(plan.limits)
        self._files = RunFiles()

    @property
    def record_error(self) -> str | None:
        recorder = self._files.recorder
        return None if recorder is None else recorder.error

    @property
    def _sees_every_step(self) -> bool:
        plan = self._plan
        return plan.video is not None or plan.rerun is not None or plan.record_frames

    @contextmanager
    def files(self) -> Iterator[None]:
        """Open what the plan wants written; a replay writes nothing."""
        plan, environment = self._plan, self._environment
        if self._record is not None:
            yield
            return
        header = None
        if plan.record is not None and plan.bundle is not None:
            asked = TypeAdapter(RolloutPlan).dump_python(plan, mode="json")
            header = run_header(plan.bundle, plan=asked, environment=environment, name=plan.env, rate_hz=self.rate_hz)
        with RunFiles.open(
            film=plan.video,
            film_hz=self.rate_hz or environment.control_hz,
            record=plan.record,
            header=header,
            with_frames=plan.record_frames,
            rerun=plan.rerun,
        ) as self._files:
            yield

    def episodes(self) -> list[Rollout]:
        """Run them all, or until somebody asks to stop."""
        count = self._plan.episodes if self._record is None else len(self._record.episodes)
        rollouts: list[Rollout] = []
        for episode in range(count):
            rollouts.append(self._episode(episode))
            if self.stop.reason is not None or rollouts[-1].record.ended in STOPPED:
                break
        self._files.write_film()
        return rollouts

    def _episode(self, episode: int) -> Rollout:
        plan, goal = self._plan, self._goal
        seed, max_steps = plan.seed + episode, plan.max_steps
        pace: Pace | None = None if self.rate_hz is None else RateKeeper(self.rate_hz)
        instruction: Callable[[], str] | None = None
        if self._record is not None:
            steps = self._record.episodes[episode].steps
            max_steps, pace = len(steps), RecordedPace(steps)
            instruction = _told_instructions(steps, goal.instruction)
        loop = ControlLoop(
            self._controller,
            SimulatedRobot(self._environment),
            pace=pace,
            late=plan.late,
            guard=self._guard,
            backbone_deadline_s=None
            if plan.backbone_deadline_ms is None or self._record is not None
            else plan.backbone_deadline_ms / 1000,
            stop=self.stop,
            priority=plan.realtime_priority,
            speed=plan.speed,
            stop_after_frozen=plan.stop_after_frozen,
            step_deadline_s=math.inf if self._record is not None else plan.step_deadline_s,
            cancel=self._cancel,
        )

        def record_step(step: StepReport) -> None:
            self._files.add(step)
            if self._on_step is not None:
                self._on_step(episode, step)

        with self._files.episode(episode, seed=seed, instruction=goal.instruction):
            rollout = roll_out(
                loop,
                goal,
                max_steps=max_steps,
                success=begin_episode(self._environment, goal, seed),
                instruction=instruction,
                on_step=record_step,
                observe_every_step=self._sees_every_step,
                seed=seed,
            )
        self._files.end_episode(rollout.record)
        return rollout


def _told_instructions(steps: Sequence[StepLine], first: str) -> Callable[[], str]:
    """Return what answers, asked once per step, with the instruction that was followed in that step."""
    present, following = first, iter(steps)

    def tell() -> str:
        nonlocal present
        step = next(following, None)
        if step is not None and step.instruction is not None:
            present = step.instruction
        return present

    return tell


def _gather(rollouts: Iterable[Rollout], stage: str) -> list[float]:
    return [duration_ms for rollout in rollouts for duration_ms in rollout.timings_ms.get(stage, ())]
