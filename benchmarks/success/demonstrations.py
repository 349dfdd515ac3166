"""Records demonstrations: scripted experts at work, or a policy at work while an expert says what it should have done.

Whatever drives, `rel_actions` of a frame is the expert's own answer to its state: what a policy is to learn. It is also the
action that was sent, unless noise was added (`ActionNoise`, after DART) or a driver acted in its place (after DAgger, Ross
et al., AISTATS 2011). `actions` tells what happened: the tcp pose of the next frame and the gripper action sent.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, cast

import numpy as np
import numpy.typing as npt

from rfedge.data.collection.collect import Episode, SegmentRecord
from rfedge.envs.action_noise import ActionNoise, NoiseBursts
from rfedge.envs.experts import EXPERT_TASKS, Expert, make_expert, prepare
from rfedge.envs.feasibility import feasible_tasks, gripped_blocks
from rfedge.envs.interface import Environment, Float64Array, SceneInfo, make_environment
from rfedge.envs.language import sample_instruction
from rfedge.envs.looks import redress
from rfedge.envs.oracle import task_solved
from rfedge.envs.tasks import TASKS, check_task
from rfedge.errors import ConfigError
from rfedge.messages import POSE_SIZE, Observation
from rfedge.records.plan import Option, check_least
from rfedge.robot.conventions import Conventions, conventions_of
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import Controller, ControlStep
from rfedge.runtimes.control.safety import guard_action
from rfedge.runtimes.rollout import Goal, StandingSimulator, roll_out

MAX_FRAMES: Final = 64  # the longest window that CALVIN annotates with language
MIN_FRAMES: Final = 16  # the shortest window that CALVIN's loader samples
SETTLE_FRAMES: Final = 3  # for which the task must stay done, so that the window shows its end
# Streams of randomness beside the one that decides starts and experts: without noise or driver they are not there, and
# the episodes of equal seeds still begin alike.
_NOISE_STREAM: Final = 1
_DRIVER_STREAM: Final = 2
_LOOKS_STREAM: Final = 3
_COLUMNS: Final = ("rgb_static", "rgb_gripper", "robot_obs", "scene_obs", "rel_actions", "actions")


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """Differences from one task done by its expert."""

    # added to every action that is sent, never to what is recorded as the label; None for none
    noise: ActionNoise | None = None
    chain_length: Annotated[
        int, Option("Tasks that follow each other without a reset, sampled from --tasks.", panel="Episodes", min=1)
    ] = 1
    chain_tasks: tuple[str, ...] = EXPERT_TASKS  # those that may follow; the first is the one asked for
    at_spots: Annotated[bool, Option("Begin with the blocks near where CALVIN's chains have them.")] = False
    max_steps: Annotated[
        int,
        Option(
            "Control steps per task with --policy, default 360; more than 64 become several segments.",
            panel="A policy drives",
            optional=True,
        ),
    ] = MAX_FRAMES
    expert_share: Annotated[
        float, Option("Part of the tasks that the expert drives in spite of --policy; default 0.", optional=True)
    ] = 0.0
    # None lets the policy finish and records all of it
    takeover_steps: Annotated[
        int | None,
        Option(
            "The policy drives each task for at most this many steps, sampled each time; then the expert takes over, "
            "and its part alone is recorded."
        ),
    ] = None

    @property
    def max_frames(self) -> int:
        return self.chain_length * self.max_steps

    def check(self) -> None:
        """Raise ConfigError when a number is out of range or a task that may follow is unknown."""
        if self.noise is not None:
            self.noise.check()
        check_least(1, {"chain length": self.chain_length}, remedy="Give a positive whole number.")
        check_least(MIN_FRAMES, {"max steps": self.max_steps}, remedy="Shorter windows are not in CALVIN's format.")
        if not 0.0 <= self.expert_share <= 1.0:
            remedy = "Give the part of the tasks that the expert drives."
            raise ConfigError("expert share", got=self.expert_share, expected="0 to 1", remedy=remedy)
        if self.takeover_steps is not None:
            remedy = "Give the most control steps that the policy drives a task."
            check_least(1, {"takeover steps": self.takeover_steps}, remedy)
        for task in self.chain_tasks:
            check_task(task)


def record_episode(
    task: str,
    *,
    scene: str = "D",
    seed: int,
    environment: Environment | None = None,
    options: RecordingOptions | None = None,
    driver: Controller | None = None,
) -> Episode:
    """Record `task`, and whatever follows it, once from a random start.

    A task that the expert failed at is left out with its frames unless it is the first; one that a driver failed at is kept.
    With `RecordingOptions.takeover_steps` there may be none at all, then without success and without frames. Task, scene,
    seed, options and `driver`, a policy in its loop that acts in the expert's place, decide everything, images included; an
    `environment` of the same scene is used again, because building one costs more than an episode's first frames.

    Raises:
        ConfigError: the task has no expert, the environment shows another scene, or an option is out of range.
        BackendUnavailableError: no simulator or renderer.
    """
    check_task(task)
    options = options or RecordingOptions()
    options.check()
    if environment is not None and environment.scene != scene:
        remedy = "Pass an environment of that scene, or none."
        raise ConfigError("environment", got=f"scene {environment.scene}", expected=f"scene {scene}", remedy=remedy)
    # One stream a task, so that equal seeds do not give all tasks the same scene. The instruction is sampled before the
    # start, so that these are not the starts of `prepare_start`: nobody learns from those that are measured.
    rng = np.random.default_rng([TASKS.index(task), seed])
    expert = make_expert(task, scene, rng)
    instruction = sample_instruction(task, rng)
    with contextlib.ExitStack() as stack:
        if environment is None:
            environment = stack.enter_context(make_environment("playtable", scene=scene))
        redress(environment, (TASKS.index(task), seed, _LOOKS_STREAM))
        prepare(task, environment, rng, at_spots=options.at_spots)
        noise, shares = (
            np.random.default_rng([TASKS.index(task), seed, stream]) for stream in (_NOISE_STREAM, _DRIVER_STREAM)
        )
        bursts = None if options.noise is None else NoiseBursts(options.noise, noise)
        rollout = _Rollout(environment, StandingSimulator(environment), options, driver, rng, bursts, shares)
        success = rollout.run_chain(task, instruction, expert)
        frames = {name: np.stack(column) for name, column in rollout.columns.items() if column}
        return Episode(task, instruction, seed, success, frames, tuple(rollout.segments))


@dataclass(slots=True, eq=False)
class _Rollout:
    """One rollout under way, from a prepared start on."""

    environment: Environment
    robot: StandingSimulator
    options: RecordingOptions
    driver: Controller | None
    rng: np.random.Generator
    noise: NoiseBursts | None
    shares: np.random.Generator  # for the driver's part
    columns: dict[str, list[npt.NDArray[Any]]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    segments: list[SegmentRecord] = field(default_factory=list)

    def run_chain(self, task: str, instruction: str, expert: Expert) -> bool:
        """Run up to `chain_length` tasks; return whether all that were recorded were done."""
        for links_left in reversed(range(self.options.chain_length)):
            first = len(self.columns["actions"])
            solved = self._run_task(task, instruction, expert, must_let_go=links_left > 0 and not task.startswith("lift_"))
            takes_over = self.options.takeover_steps is not None
            if not solved and (takes_over or (self.driver is None and self.segments)):
                for column in self.columns.values():
                    del column[first:]
                break
            if num_frames := len(self.columns["actions"]) - first:  # none where the driver was done before the takeover
                self._add_segments(task, instruction, num_frames, solved=solved)
            if not solved:
                return False
            if not links_left:
                break
            candidates = feasible_tasks(
                self.environment.info(),
                self.environment.scene,
                (candidate for candidate in self.options.chain_tasks if candidate != task),
                with_sequel=links_left > 1,
            )
            if not candidates:
                break
            task = candidates[int(self.rng.integers(len(candidates)))]
            expert = make_expert(task, self.environment.scene, self.rng)
            instruction = sample_instruction(task, self.rng)
        return bool(self.segments)

    def _add_segments(self, task: str, instruction: str, num_frames: int, *, solved: bool) -> None:
        # Of equal length, because CALVIN's loader cannot use a short rest.
        num_windows = -(-num_frames // MAX_FRAMES)
        bounds = [num_frames * window // num_windows for window in range(num_windows + 1)]
        for window, (start, end) in enumerate(itertools.pairwise(bounds)):
            is_last = window == num_windows - 1
            self.segments.append(SegmentRecord(task, instruction, end - start, solved=solved and is_last))

    def _run_task(self, task: str, instruction: str, expert: Expert, *, must_let_go: bool) -> bool:
        """Record until `task` has stayed done for some frames, or to the last step; return whether it is done then."""
        environment, goal = self.environment, Goal(instruction, task)
        driver = self.driver
        if driver is not None and self.options.expert_share and self.shares.random() < self.options.expert_share:
            driver = None
        start = environment.info()
        done = _StaysDone(task, start, must_let_go)
        if driver is not None and self.options.takeover_steps is not None:
            expert.begin(environment.scene_state())
            num_driven = int(self.shares.integers(self.options.takeover_steps, endpoint=True))
            # Not recorded, so rendered only where the driver looks: rendering takes most of a step.
            driven = roll_out(
                ControlLoop(driver, self.robot),
                goal,
                max_steps=num_driven,
                success=lambda: done.is_over(environment.info()),
            )
            if driven.record.success:
                return True
            driver = None
            done = _StaysDone(task, start, must_let_go)
        labelled = _Labelled(environment, expert, driver, self.noise)
        num_steps = 0

        def record(step: ControlStep) -> None:
            nonlocal num_steps
            num_steps = step.index + 1
            assert step.observation is not None
            absolute = np.append(environment.robot_state()[:POSE_SIZE], step.sent[POSE_SIZE])
            seen = (step.observation.static, step.observation.gripper)
            row: tuple[npt.NDArray[Any], ...] = (*seen, *labelled.row, absolute)
            for column, value in zip(self.columns.values(), row, strict=True):
                column.append(value)

        roll_out(
            ControlLoop(labelled, self.robot),
            goal,
            max_steps=self.options.max_steps,
            success=lambda: done.is_over(environment.info()) and num_steps >= MIN_FRAMES,
            on_step=record,
            observe_every_step=True,
        )
        return done.num_frames > 0  # done in the last frame


@dataclass(slots=True)
class _Labelled:
    """An expert that says at every step what it would do, and acts unless a driver does; noise is added to what is sent."""

    environment: Environment
    expert: Expert
    driver: Controller | None
    noise: NoiseBursts | None
    # robot_obs (15,), scene_obs (24,) and the expert's action (7,) of the last step
    row: tuple[Float64Array, Float64Array, Float64Array] = field(init=False)

    @property
    def conventions(self) -> Conventions:
        return conventions_of(self.driver)

    @property
    def needs_observation(self) -> bool:
        return self.driver is not None and self.driver.needs_observation

    def reset(self, instruction: str) -> None:
        if self.driver is not None:
            self.driver.reset(instruction)

    def control(self, observation: Observation | None) -> ControlStep:
        robot_obs, scene_obs = self.environment.robot_state(), self.environment.scene_state()
        label = sent = self.expert.act(robot_obs, scene_obs)
        self.row = (robot_obs, scene_obs, label)
        step = None
        if self.driver is not None:
            step = self.driver.control(observation if self.driver.needs_observation else None)
            sent = guard_action(step.action).astype(np.float64)
        if self.noise is not None:
            sent = self.noise.disturb(sent)
        if sent is not label:
            self.expert.observe_executed(sent)
        # In double precision, as the expert computes: a simulator gets what comes.
        return ControlStep(cast("npt.NDArray[np.float32]", sent), None if step is None else step.inference)

    def close(self) -> None:
        """Do nothing: nothing runs beside the loop."""


@dataclass(slots=True)
class _StaysDone:
    """Says when a task has stayed done for some frames: a block that is dropped again teaches the wrong thing."""

    task: str
    start: SceneInfo
    must_let_go: bool
    num_frames: int = 0

    def is_over(self, info: SceneInfo) -> bool:
        """Look at the next frame; return whether the task is over."""
        self.num_frames = self.num_frames + 1 if task_solved(self.task, self.start, info) else 0
        # The next task of a chain must not drag along a block that this one still grips.
        return self.num_frames > SETTLE_FRAMES and not (self.must_let_go and gripped_blocks(info))
