"""What the control loop itself costs, whether it keeps its rate, and whether it grows.

Five parts, one after the other, on the policy of `rfedge.benchmarks.latency.loop_policy`:

    overhead     a backbone that takes no time: everything but backbone and head, with limits and watchdog on
    rate         a backbone of `backbone_ms` in closed loop at `rate_hz`, for `minutes`
    overlapped   a backbone of `periods` control periods in overlapped mode: the rate it keeps and how old frames are
    memory       `steps` control steps as fast as they go on the real graph: resident memory from first to last
    open loop    the real graph: milliseconds per control step for each number of steps played of a chunk
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import numpy as np
import numpy.typing as npt
import psutil

from rfedge.benchmarks.latency.loop_policy import StillRobot, Work, make_loop_bundle, timed_policy
from rfedge.benchmarks.latency.loop_report import LoopReport, MemoryPart, OpenLoopRow, OverheadPart, RatePart
from rfedge.benchmarks.latency.run import sample_observations
from rfedge.errors import ConfigError, did_you_mean
from rfedge.records.machine import provenance
from rfedge.records.plan import check_least
from rfedge.records.statistics import summarise
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.control.clock import RateKeeper
from rfedge.runtimes.control.controllers import make_controller
from rfedge.runtimes.control.loop import ControlLoop, LoopSummary, StepReport
from rfedge.runtimes.control.safety import SafetyGuard, SafetyLimits, Workspace
from rfedge.runtimes.control.scheduling import check_priority
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.rollout.recorder import RunRecorder
from rfedge.runtimes.rollout.run_record import RunHeader

__all__ = ["LoopPlan", "run_loop"]

INSTRUCTION: Final = "pull the handle to open the drawer"
EXECUTE_STEPS: Final = (1, 2, 4, 8, 16)
WARMUP_STEPS: Final = 48  # divisible by every number of `EXECUTE_STEPS`: a chunk is counted as a whole or not at all
MEMORY_WARMUP: Final = 0.02  # share of the steps after which resident memory is taken as its beginning
NUM_MEMORY_SAMPLES: Final = 100
_LIMITS: Final = SafetyLimits(0.01, 0.03, Workspace((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)))
_HUNG_S: Final = 10.0
# (what is measured, done, total)
LoopProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LoopPlan:
    """What to measure.

    Attributes:
        folder: where the bundle is or is made; None is a folder that goes away.
        bundles: further bundles for the open-loop table.
        minutes: how long the rate is held.
        rate_hz: control steps per second.
        backbone_ms: duration of the backbone while the rate is held.
        work: how that time passes.
        periods: control periods that the overlapped backbone takes.
        overlapped_minutes: how long that runs.
        steps: control steps of the memory part.
        realtime_priority: of the loop's thread while rates are held (`rfedge.runtimes.control.scheduling`); None: ordinary.
        samples: control steps of each measurement of overhead; a tenth of it, inferences of the open-loop table's first
            line.
    """

    folder: Path | None = None
    bundles: tuple[Path, ...] = ()
    minutes: float = 10.0
    rate_hz: float = 30.0
    backbone_ms: float = 20.0
    work: Work = "busy"
    periods: float = 3.0
    overlapped_minutes: float = 1.0
    steps: int = 100_000
    samples: int = 3000
    realtime_priority: int | None = None

    def __post_init__(self) -> None:
        """Refuse a plan that measures nothing.

        Raises:
            ConfigError: a number is too small, or the work has another name.
        """
        check_priority(self.realtime_priority)
        check_least(NUM_MEMORY_SAMPLES, {"steps": self.steps})
        check_least(WARMUP_STEPS, {"samples": self.samples})
        check_least(0, {"backbone_ms": self.backbone_ms, "periods": self.periods})
        for name, value in (("minutes", self.minutes), ("overlapped_minutes", self.overlapped_minutes)):
            if value * 60.0 * self.rate_hz < 2:
                remedy = "Raise it or --rate-hz."
                raise ConfigError(name, got=value, expected="two control steps or more", remedy=remedy)
        if self.work not in get_args(Work):
            expected = did_you_mean(self.work, get_args(Work))
            raise ConfigError("work", got=repr(self.work), expected=expected, remedy="Choose one of these names.")


def run_loop(plan: LoopPlan, *, progress: LoopProgress | None = None) -> LoopReport:
    """Measure all five parts.

    Raises:
        ArtifactError: a bundle cannot be loaded.
        BackendUnavailableError: there is no bundle and no exporter to make one.
    """
    told = progress or (lambda part, done, total: None)
    with tempfile.TemporaryDirectory() as temporary:
        told("bundle", 0, 1)
        bundle = make_loop_bundle(plan.folder or Path(temporary))
        told("bundle", 1, 1)
        with EdgePolicy.load(bundle, settings=RuntimeSettings(threads=1)) as policy:
            memory = _memory(policy, plan, told)
            name = policy.config.name
        rows = tuple(row for path in (bundle, *plan.bundles) for row in _open_loop(path, plan.samples, told))
        return LoopReport(
            **provenance(),
            policy=name,
            work=plan.work,
            realtime_priority=plan.realtime_priority,
            overhead=_overhead(bundle, Path(temporary), plan.samples, told),
            rate=_rate(bundle, plan, "closed-loop", plan.backbone_ms, plan.minutes, told),
            overlapped=_rate(
                bundle, plan, "overlapped", 1000.0 * plan.periods / plan.rate_hz, plan.overlapped_minutes, told
            ),
            memory=memory,
            open_loop=rows,
        )


def _robot(policy: EdgePolicy) -> StillRobot:
    return StillRobot(sample_observations(policy.parts.contract, 16, seed=0))


def _overhead(bundle: Path, folder: Path, num_steps: int, progress: LoopProgress) -> OverheadPart:
    header = RunHeader(
        recorded_at="", bundle=str(bundle), manifest_sha256="", mode="closed-loop", plan={}, environment={}, versions={}
    )
    with timed_policy(bundle, 0.0, "sleep") as policy, RunRecorder(folder / "overhead.jsonl", header) as recorder:
        recorder.begin_episode(0, seed=None, instruction=INSTRUCTION)
        plain_ms = _overhead_samples(policy, num_steps, lambda step: None)
        progress("overhead", 1, 2)
        recorded_ms = _overhead_samples(policy, num_steps, recorder.add)
        progress("overhead", 2, 2)
    return OverheadPart(loop_ms=summarise(plain_ms), recorded_ms=summarise(recorded_ms))


def _overhead_samples(policy: EdgePolicy, num_steps: int, on_step: Callable[[StepReport], None]) -> npt.NDArray[np.float64]:
    samples_ms = np.zeros(WARMUP_STEPS + num_steps)
    last_s = time.perf_counter()

    def measure(step: StepReport) -> None:
        nonlocal last_s
        on_step(step)
        now_s = time.perf_counter()
        inference = step.control.inference
        spent_ms = 0.0 if inference is None else inference.timings_ms["backbone"] + inference.timings_ms["head"]
        samples_ms[step.index] = 1000.0 * (now_s - last_s) - spent_ms
        last_s = now_s

    loop = ControlLoop(
        make_controller(policy, "closed-loop"),
        _robot(policy),
        guard=SafetyGuard(_LIMITS),
        backbone_deadline_s=_HUNG_S,
    )
    loop.run(INSTRUCTION, max_steps=len(samples_ms), on_step=measure)
    return samples_ms[WARMUP_STEPS:]


def _rate(bundle: Path, plan: LoopPlan, mode: str, backbone_ms: float, minutes: float, progress: LoopProgress) -> RatePart:
    num_steps = round(minutes * 60.0 * plan.rate_hz)
    wake_lag_ms, age_ms, age_steps = np.zeros(num_steps), np.zeros(num_steps), np.zeros(num_steps, dtype=np.int64)
    with timed_policy(bundle, backbone_ms / 1000.0, plan.work) as policy:
        keeper = RateKeeper(plan.rate_hz)
        controller = make_controller(policy, mode)
        loop = ControlLoop(
            controller,
            _robot(policy),
            pace=keeper,
            guard=SafetyGuard(_LIMITS),
            backbone_deadline_s=_HUNG_S,
            priority=plan.realtime_priority,
            speed=plan.rate_hz / policy.config.control_hz,  # nothing moves: any rate can be measured
        )

        def measure(step: StepReport) -> None:
            wake_lag_ms[step.index] = 1000.0 * keeper.wake_lag_s
            age_ms[step.index] = step.age_ms
            age_steps[step.index] = 0 if step.control.missing else step.control.age_steps
            if step.index % round(plan.rate_hz) == 0:
                progress(mode, step.index, num_steps)

        try:
            started_s = time.perf_counter()
            summary: LoopSummary = loop.run(INSTRUCTION, max_steps=num_steps, on_step=measure)
            duration_s = time.perf_counter() - started_s
        finally:
            controller.close()
    progress(mode, num_steps, num_steps)
    return RatePart(
        backbone_ms=backbone_ms,
        duration_s=duration_s,
        wanted_hz=plan.rate_hz,
        # From the first deadline to the last; what came after the last step is no period.
        held_hz=(summary.num_steps - 1) / ((summary.num_steps - 1 + keeper.num_skipped) / plan.rate_hz),
        num_steps=summary.num_steps,
        num_inferences=summary.num_inferences,
        num_late=keeper.num_late,
        num_skipped=keeper.num_skipped,
        num_missed=summary.num_missed,
        num_starved=summary.num_starved,
        num_starting=summary.num_starting,
        wake_lag_ms=summarise(wake_lag_ms),
        age_ms=summarise(age_ms[summary.num_starting :]),
        max_age_steps=int(age_steps.max()),
    )


def _memory(policy: EdgePolicy, plan: LoopPlan, progress: LoopProgress) -> MemoryPart:
    process = psutil.Process()
    every = max(1, plan.steps // NUM_MEMORY_SAMPLES)
    warmup = max(every, round(MEMORY_WARMUP * plan.steps))
    first_bytes = last_bytes = max_bytes = 0

    def sample(step: StepReport) -> None:
        nonlocal first_bytes, last_bytes, max_bytes
        if (step.index + 1) % every:
            return
        progress("memory", step.index + 1, plan.steps)
        last_bytes = process.memory_info().rss
        if step.index + 1 <= warmup or not first_bytes:
            first_bytes = max_bytes = last_bytes
        max_bytes = max(max_bytes, last_bytes)

    loop = ControlLoop(
        make_controller(policy, "closed-loop"), _robot(policy), guard=SafetyGuard(_LIMITS), backbone_deadline_s=_HUNG_S
    )
    started_s = time.perf_counter()
    loop.run(INSTRUCTION, max_steps=plan.steps, on_step=sample)
    return MemoryPart(
        num_steps=plan.steps,
        duration_s=time.perf_counter() - started_s,
        first_bytes=first_bytes,
        last_bytes=last_bytes,
        max_bytes=max_bytes,
        growth=(max_bytes - first_bytes) / first_bytes,
    )


def _open_loop(bundle: Path, samples: int, progress: LoopProgress) -> list[OpenLoopRow]:
    rows = []
    with EdgePolicy.load(bundle, settings=RuntimeSettings()) as policy:
        possible = [steps for steps in EXECUTE_STEPS if steps <= policy.chunk_size]
        for index, execute_steps in enumerate(possible):
            spent_ms = {"total": 0.0, "backbone": 0.0}

            def gather(step: StepReport, spent_ms: dict[str, float] = spent_ms) -> None:
                if step.control.inference is not None and step.index >= WARMUP_STEPS:
                    for stage in spent_ms:
                        spent_ms[stage] += step.control.inference.timings_ms[stage]

            # Fewer inferences where one is spread over more steps, and whole chunks.
            num_steps = max(1, samples // 10 // min(execute_steps, 4)) * execute_steps
            loop = ControlLoop(make_controller(policy, "open-loop", execute_steps), _robot(policy))
            loop.run(INSTRUCTION, max_steps=WARMUP_STEPS + num_steps, on_step=gather)
            rows.append(
                OpenLoopRow(
                    policy=policy.config.name,
                    precision=policy.parts.precision,
                    chunk_size=policy.chunk_size,
                    execute_steps=execute_steps,
                    num_steps=num_steps,
                    total_ms=spent_ms["total"] / num_steps,
                    backbone_ms=spent_ms["backbone"] / num_steps,
                )
            )
            progress(f"open loop {policy.config.name}", index + 1, len(possible))
    return rows
