"""Times an environment: what a control step costs with and without pictures, and what a reset costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np

from rfedge.benchmarks.latency.garbage import collector_at_rest
from rfedge.envs import Environment, make_environment
from rfedge.envs.interface import CAMERAS, ENVIRONMENTS
from rfedge.envs.looks import LOOKS_HELP, RENDERER_HELP, Looks, Renderer
from rfedge.errors import GateError
from rfedge.jobs.progress import Count
from rfedge.messages import ACTION_SIZE, GRIPPER_CLOSE, GRIPPER_OPEN, POSE_SIZE
from rfedge.records.machine import Measurement, provenance
from rfedge.records.plan import Option, check_least
from rfedge.records.statistics import Summary, summarise

WARMUP_ROUNDS: Final = 3  # the first pictures of a software renderer compile its shaders
NUM_RESETS: Final = 10
# Poses are a random walk of small steps, so that the arm stays near its neutral pose and touches little.
MAX_POSE: Final = 0.3
GRIPPER_PERIOD: Final = 30  # control steps between two changes of the gripper


@dataclass(frozen=True)
class EnvironmentSpeedPlan:
    env: Annotated[str, Option("Environment: playtable or calvin.", choices=ENVIRONMENTS)] = "playtable"
    scene: Annotated[str, Option("Table layout, A to D.")] = "D"
    looks: Annotated[Looks | None, Option(LOOKS_HELP)] = None
    renderer: Annotated[Renderer | None, Option(RENDERER_HELP)] = None
    # each is one `advance`, one picture of each camera, one `observe` and one `step`
    steps: Annotated[int, Option("Timed rounds.")] = 200
    seed: Annotated[int, Option("Seed of actions and block poses.", min=0)] = 0

    def __post_init__(self) -> None:
        check_least(1, {"steps": self.steps})


class EnvironmentSpeedReport(Measurement):
    """`versions` are of this process, `simulator_versions` of a simulator that runs in one of its own."""

    format: Literal["rfedge-environment-speed"] = "rfedge-environment-speed"
    schema_version: int = 1
    simulator_versions: dict[str, str]
    environment: str
    scene: str
    renderer: str
    control_hz: int
    steps: int
    warmup: int
    seed: int
    build_ms: float
    # `advance` (physics of one control step), `static` and `gripper` (one camera each; not in older records), `observe`
    # (both cameras), `step` (physics and both cameras, timed by itself) and `reset` (random blocks, then both cameras)
    per_call_ms: dict[str, Summary]
    looks: str | None = None  # what the pictures show; None in records that are older than the field


def run_environment_speed(plan: EnvironmentSpeedPlan, *, on_round: Count = lambda *_: None) -> EnvironmentSpeedReport:
    """Build the environment, time it and report; `on_round` counts warm-up and resets too.

    Raises:
        ConfigError: environment or scene is unknown.
        BackendUnavailableError: the simulator or its renderer is missing.
    """
    started_s = time.perf_counter()
    with make_environment(
        plan.env, looks=plan.looks, renderer=plan.renderer, scene=plan.scene, seed=plan.seed
    ) as environment:
        build_ms = 1000.0 * (time.perf_counter() - started_s)
        return EnvironmentSpeedReport(
            **provenance(),
            simulator_versions=dict(getattr(environment, "versions", {})),
            environment=plan.env,
            scene=environment.scene,
            renderer=environment.renderer,
            looks=environment.looks,
            control_hz=environment.control_hz,
            steps=plan.steps,
            warmup=WARMUP_ROUNDS,
            seed=plan.seed,
            build_ms=build_ms,
            per_call_ms=_measure(environment, plan, on_round),
        )


def assert_step_ms(report: EnvironmentSpeedReport, limit_ms: float) -> None:
    """Raise GateError, with both numbers, unless the median `step`, pictures included, takes less than `limit_ms`."""
    median_ms = report.per_call_ms["step"].p50
    if median_ms >= limit_ms:
        raise GateError(
            f"step of {report.environment!r} with {report.renderer}",
            got=f"{median_ms:.1f} ms (median)",
            expected=f"below {limit_ms:g} ms",
            remedy="Compare physics and cameras in the table, or measure on a quiet machine.",
        )


def _measure(environment: Environment, plan: EnvironmentSpeedPlan, on_round: Count) -> dict[str, Summary]:
    rng = np.random.default_rng(plan.seed)
    rounds = WARMUP_ROUNDS + plan.steps
    poses = rng.uniform(-MAX_POSE, MAX_POSE, size=(rounds, 2, POSE_SIZE))
    durations_ms: dict[str, list[float]] = {name: [] for name in ("advance", *CAMERAS, "observe", "step", "reset")}

    def timed(name: str, call: Callable[[], object]) -> None:
        started_s = time.perf_counter()
        call()
        durations_ms[name].append(1000.0 * (time.perf_counter() - started_s))

    environment.restore()
    with collector_at_rest():
        for index in range(rounds):
            actions = np.empty((2, ACTION_SIZE))
            actions[:, :POSE_SIZE] = poses[index]
            actions[:, POSE_SIZE] = GRIPPER_OPEN if 2 * index // GRIPPER_PERIOD % 2 == 0 else GRIPPER_CLOSE
            timed("advance", functools.partial(environment.advance, actions[0]))
            for camera in CAMERAS:
                timed(camera, functools.partial(environment.draw_camera, camera))
            timed("observe", environment.observe)
            timed("step", functools.partial(environment.step, actions[1]))
            if index < WARMUP_ROUNDS:
                for samples in durations_ms.values():
                    samples.clear()
            on_round(index + 1, rounds + NUM_RESETS)
        for index in range(NUM_RESETS):
            timed("reset", environment.reset)
            on_round(rounds + index + 1, rounds + NUM_RESETS)
    return {name: summarise(np.array(samples)) for name, samples in durations_ms.items()}
