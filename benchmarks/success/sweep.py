"""Sweeps the number of steps per policy call over bundles and joins success with latency: the paper's Fig. 3c in numbers.

Latency is measured after success, in this process alone, because a call beside other workers says little about a robot.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import psutil
from pydantic import ValidationError

from rfedge.benchmarks.latency.run import LatencyPlan, LatencyReport, VariantResult, run_latency
from rfedge.benchmarks.success.plan import SuccessPlan
from rfedge.benchmarks.success.report import SuccessReport, SuccessRow
from rfedge.benchmarks.success.run import SWEEP_FILES
from rfedge.envs.tasks import INSTRUCTIONS
from rfedge.errors import ConfigError
from rfedge.jobs.processes import run_jobs
from rfedge.jobs.progress import Count
from rfedge.policies import bundle_name
from rfedge.records.machine import Measurement, provenance
from rfedge.records.plan import Option
from rfedge.records.record import Record
from rfedge.records.statistics import Summary
from rfedge.runtimes.backends.registry import import_backend
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.rollout.policy_source import TorchPolicy


class SweepRow(Record):
    """Latency beside one row of the success."""

    row: str
    variant: str  # name of the latency report's variant
    per_call_ms: Summary  # total of a policy call, measured alone in one process
    per_control_step_ms: Summary  # the same divided by execute_steps
    # mean time of a solved task, see `SuccessRow.mean_solved_steps`, at the control rate, as if a call took no longer than a
    # control step; None when none was solved
    completion_s: float | None
    synchronous_completion_s: float | None  # the same when the robot waits for every call of median length
    jerk: float | None


class SweepReport(Measurement):
    format: Literal["rfedge-sweep"] = "rfedge-sweep"
    schema_version: int = 1
    success: SuccessReport  # of every combination; those that are not possible are in its `not_possible`
    latency: LatencyReport  # of every bundle, measured after the rollouts and beside none
    rows: tuple[SweepRow, ...]  # one for each of `success.rows`, in their order


LATENCY_FILE, SWEEP_FILE, PLOT_FILE = SWEEP_FILES
_INSTRUCTION: Final = INSTRUCTIONS["open_drawer"]
_OTHER_PROCESS: Final = 2  # workers: one would be this process, and of two a single job needs one


@dataclass(frozen=True)
class SweepPlan:
    success: SuccessPlan  # rows; combinations that are not possible are listed and left out
    iterations: Annotated[
        int,
        Option(
            "With --precisions or several --execute-steps: timed calls per policy.", panel="Latency, measured alone", min=1
        ),
    ] = 200
    warmup: Annotated[int, Option("Untimed calls per policy.", min=0)] = 20
    settle_ms: Annotated[float, Option("Untimed pause before each timed call.")] = 20.0
    latency_threads: Annotated[
        int, Option("Threads while latency is measured alone; 0 is the backend's own choice.", min=0)
    ] = 0

    def __post_init__(self) -> None:
        if self.success.emulate_engines:
            raise ConfigError(
                "--emulate-engines",
                got="a measurement that is timed too",
                expected="one --execute-steps, and no --precisions",
                remedy="Emulated engines have no latency; measure their success by itself.",
            )
        object.__setattr__(self, "success", dataclasses.replace(self.success, skip_impossible=True))
        _ = self.latency

    @property
    def latency(self) -> LatencyPlan:
        return LatencyPlan(
            bundles=self.success.bundles,
            torch=self.success.torch,
            instruction=_INSTRUCTION,
            execute_steps=1,  # each row divides by its own
            warmup=self.warmup,
            iterations=self.iterations,
            settle_ms=self.settle_ms,
            seed=self.success.seed,
            settings=dataclasses.replace(self.success.settings, threads=self.latency_threads),
            backend=self.success.backend,
        )


def finish_sweep(
    plan: SweepPlan, success: SuccessReport, output: Path | None = None, *, on_round: Count = lambda *_: None
) -> SweepReport:
    """Time the bundles, unless an earlier call did, and join it with their success; `output` is the rollouts' folder.

    Raises:
        ArtifactError: a bundle is damaged.
        BackendUnavailableError: the backend is not on this machine.
    """
    timing = plan.latency
    latency = None if output is None else _stored_latency(output / LATENCY_FILE, timing)
    if latency is None:
        latency = _loaded_alone(run_latency(timing, on_round=on_round), timing)
        if output is not None:
            latency.write(output / LATENCY_FILE)
    report = SweepReport(**provenance(), success=success, latency=latency, rows=join(success, latency))
    if output is not None:
        report.write(output / SWEEP_FILE)
    return report


def _loaded_alone(latency: LatencyReport, plan: LatencyPlan) -> LatencyReport:
    """Return the report with what each policy takes in a process of its own: here they share pages of the allocator."""
    taken = dict(zip((variant.name for variant in _timed(latency)), loaded_bytes(plan), strict=True))
    return latency.model_copy(
        update={
            "variants": tuple(
                variant.model_copy(update={"load_rss_bytes": taken.get(variant.name, variant.load_rss_bytes)})
                for variant in latency.variants
            )
        }
    )


def join(success: SuccessReport, latency: LatencyReport) -> tuple[SweepRow, ...]:
    """Return what the latency adds to every row; both reports are of the same bundles in the same order."""
    variants = {policy.label: variant for policy, variant in zip(success.policies, _timed(latency), strict=True)}
    return tuple(_join(row, variants[row.policy], success.conditions.control_hz) for row in success.rows)


def _timed(latency: LatencyReport) -> list[VariantResult]:
    return [variant for variant in latency.variants if variant.role != "noise-floor"]


def _join(row: SuccessRow, variant: VariantResult, control_hz: float) -> SweepRow:
    per_call_ms, steps = variant.per_call_ms["total"], row.mean_solved_steps
    # Of every `execute_steps` control steps one waits for a call.
    step_s = 1 / control_hz
    waiting_s = max(per_call_ms.p50 / 1000, step_s) - step_s
    return SweepRow(
        row=row.name,
        variant=variant.name,
        per_call_ms=per_call_ms,
        per_control_step_ms=per_call_ms.divided(row.execute_steps),
        completion_s=None if steps is None else steps * step_s,
        synchronous_completion_s=None if steps is None else steps * (step_s + waiting_s / row.execute_steps),
        jerk=row.jerk,
    )


def _stored_latency(path: Path, plan: LatencyPlan) -> LatencyReport | None:
    """Return the timing that an earlier call wrote, if it is of the same plan."""
    with suppress(OSError, ValidationError):
        stored = LatencyReport.model_validate_json(path.read_bytes())
        conditions = stored.conditions
        timed = [(item.source, item.role == "torch" and item.precision) for item in _timed(stored)]
        asked: list[tuple[str, str | bool]] = [(bundle_name(path), False) for path in plan.bundles]
        asked += [(bundle_name(item.checkpoint), item.precision) for item in plan.torch]
        if timed == asked and (conditions.iterations, conditions.threads, conditions.settle_ms, conditions.seed) == (
            plan.iterations,
            plan.settings.threads,
            plan.settle_ms,
            plan.seed,
        ):
            return stored
    return None


def loaded_bytes(plan: LatencyPlan) -> tuple[int, ...]:
    """Return by how much loading each policy makes a process grow whose libraries are imported, bundles first."""
    call = functools.partial(_load, plan)
    return tuple(found for policy in (*plan.bundles, *plan.torch) for _, found in run_jobs(call, [policy], _OTHER_PROCESS))


def _load(plan: LatencyPlan, policy: Path | TorchPolicy) -> int:
    process = psutil.Process()
    if isinstance(policy, TorchPolicy):
        importlib.import_module("rfedge.model")  # and PyTorch with it
        before = process.memory_info().rss
        opened = policy.open(plan.settings)
    else:
        import_backend(plan.backend)
        before = process.memory_info().rss
        opened = EdgePolicy.load(policy, backend=plan.backend, settings=plan.settings)
    with opened:
        return process.memory_info().rss - before
