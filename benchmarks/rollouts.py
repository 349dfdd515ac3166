"""Runs a bundle in a simulator for some episodes and records success and latency in one document.

Speed and success come from the same calls here, because a latency without the success of the same bundle says little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

from rfedge.benchmarks.episode import choose_goal, run_episode
from rfedge.benchmarks.plan import check_least
from rfedge.benchmarks.record import Record
from rfedge.benchmarks.statistics import Summary, summarise
from rfedge.envs import make_environment
from rfedge.runtimes.base import RuntimeSettings
from rfedge.runtimes.control import RolloutResult, StepReport
from rfedge.runtimes.modes import make_controller
from rfedge.runtimes.policy import STAGES, EdgePolicy
from rfedge.runtimes.registry import DEFAULT_BACKEND
from rfedge.runtimes.video import VideoRecorder

__all__ = ["EpisodeRecord", "RolloutPlan", "RolloutReport", "run_rollouts"]

ROLLOUT_SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class RolloutPlan:
    """What to run; the fields are the flags of `rfedge run`.

    Attributes:
        execute_steps: None is 1 in closed loop and the whole chunk in open loop.
        task, instruction: at least one of them; see `rfedge.benchmarks.episode.choose_goal`.
        seed: of the first episode; the next have seed + 1, seed + 2, ...
        video: where to write what the cameras saw, or None.
    """

    bundle: Path
    mode: str = "closed-loop"
    execute_steps: int | None = None
    env: str = "playtable"
    scene: str = "D"
    task: str | None = None
    instruction: str | None = None
    episodes: int = 1
    max_steps: int = 120
    seed: int = 0
    realtime: bool = False
    video: Path | None = None
    settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    backend: str = DEFAULT_BACKEND

    def __post_init__(self) -> None:
        """Refuse a plan that runs nothing.

        Raises:
            ConfigError: no episode or no step.
        """
        check_least(1, {"episodes": self.episodes, "max_steps": self.max_steps})


class EpisodeRecord(Record):
    """One episode; `success` is None when nobody could judge it."""

    seed: int
    success: bool | None
    num_steps: int
    num_inferences: int
    num_late: int
    num_skipped: int
    max_lag_ms: float


class RolloutReport(Record):
    """The whole run.

    Attributes:
        settings: what the backbone's backend reported about itself.
        execute_steps: actions really played per inference.
        per_call_ms: per stage, over all inferences of all episodes.
        mean_per_control_step_ms: per stage, all its time over all control steps.
    """

    format: Literal["rfedge-rollouts"] = "rfedge-rollouts"
    schema_version: int = ROLLOUT_SCHEMA_VERSION
    bundle: str
    policy: str
    precision: str
    settings: dict[str, str]
    mode: str
    execute_steps: int
    environment: str
    scene: str
    renderer: str
    control_hz: float
    realtime: bool
    task: str | None
    instruction: str
    episodes: tuple[EpisodeRecord, ...]
    per_call_ms: dict[str, Summary]
    mean_per_control_step_ms: dict[str, float]

    @property
    def num_successes(self) -> int | None:
        """Episodes that succeeded; None when nobody could judge."""
        if self.task is None:
            return None
        return sum(episode.success is True for episode in self.episodes)


def run_rollouts(plan: RolloutPlan, *, on_step: Callable[[int, StepReport], None] | None = None) -> RolloutReport:
    """Load the bundle, open the environment, run every episode and write the film if one is wanted.

    Args:
        plan: what to run.
        on_step: told (episode from 0, step) after each control step.

    Raises:
        ArtifactError: the bundle cannot be loaded.
        ConfigError: mode, execute_steps, task, environment, scene or the film's name is not possible.
        BackendUnavailableError: the simulator or the film writer is not installed.
    """
    goal = choose_goal(plan.task, plan.instruction)
    with EdgePolicy.load(plan.bundle, backend=plan.backend, settings=plan.settings) as policy:
        controller = make_controller(policy, plan.mode, plan.execute_steps)
        with make_environment(plan.env, scene=plan.scene, seed=plan.seed) as environment:
            recorder = None if plan.video is None else VideoRecorder(plan.video, environment.control_hz)
            results: list[RolloutResult] = []

            def record_step(step: StepReport) -> None:
                if recorder is not None and step.observation is not None:
                    recorder.add(step.observation)
                if on_step is not None:
                    on_step(len(results), step)

            for episode in range(plan.episodes):
                result = run_episode(
                    controller,
                    environment,
                    goal,
                    seed=plan.seed + episode,
                    max_steps=plan.max_steps,
                    on_step=record_step,
                    realtime=plan.realtime,
                    observe_every_step=recorder is not None,
                )
                results.append(result)
            if recorder is not None:
                recorder.write()
            default_steps = policy.chunk_size if plan.mode == "open-loop" else 1
            return RolloutReport(
                bundle=str(plan.bundle),
                policy=policy.config.name,
                precision=policy.parts.precision,
                settings=policy.parts.backbone.effective_settings(),
                mode=plan.mode,
                execute_steps=plan.execute_steps or default_steps,
                environment=plan.env,
                scene=plan.scene,
                renderer=environment.renderer,
                control_hz=environment.control_hz,
                realtime=plan.realtime,
                task=goal.task,
                instruction=goal.instruction,
                episodes=tuple(_record(result, plan.seed + index) for index, result in enumerate(results)),
                per_call_ms={stage: summarise(np.array(_gather(results, stage))) for stage in STAGES},
                mean_per_control_step_ms={
                    stage: sum(_gather(results, stage)) / sum(result.num_steps for result in results) for stage in STAGES
                },
            )


def _gather(results: Iterable[RolloutResult], stage: str) -> list[float]:
    return [duration_ms for result in results for duration_ms in result.timings_ms[stage]]


def _record(result: RolloutResult, seed: int) -> EpisodeRecord:
    return EpisodeRecord(
        seed=seed,
        success=result.success,
        num_steps=result.num_steps,
        num_inferences=result.num_inferences,
        num_late=result.num_late,
        num_skipped=result.num_skipped,
        max_lag_ms=result.max_lag_s * 1000,
    )
