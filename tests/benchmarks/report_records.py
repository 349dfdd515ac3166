"""Small records of every kind that a report joins, built from the classes that write the real ones."""

import hashlib
from pathlib import Path

import numpy as np

from rfedge.benchmarks.latency.run import Comparison, LatencyConditions, LatencyReport, VariantResult
from rfedge.benchmarks.success.chains import TaskScore
from rfedge.benchmarks.success.report import (
    ChainResult,
    Kind,
    NotPossible,
    Paired,
    PolicyRecord,
    SingleTaskResult,
    SuccessConditions,
    SuccessReport,
    SuccessRow,
)
from rfedge.benchmarks.success.sweep import SweepReport, SweepRow
from rfedge.envs.tasks import TASKS
from rfedge.records.machine import Machine
from rfedge.records.resources import PowerRecord, ResourceRecord
from rfedge.records.statistics import Mean, Proportion, Ratio, Summary, proportion, summarise

LAPTOP = Machine(
    cpu="Test CPU <&>",
    architecture="x86_64",
    physical_cores=4,
    logical_cores=8,
    usable_cores=4,
    memory_bytes=16 * 2**30,
    cpu_flags=("avx2", "avx512_vnni"),
    governor=None,
    system="Linux-test",
)
BOARD = LAPTOP.model_copy(update={"cpu": "Test board", "architecture": "aarch64", "governor": "performance"})
VERSIONS = {"python": "3.11.7", "rfedge": "0.1.0"}
SIZES = {"fp32": 61_994_740, "int8": 21_259_837, "int4-weight": 14_795_390}
# what the search of a mixed bundle leaves in it
MIXED = {
    "budget_metric": "action_max_error",
    "budget": 0.02,
    "num_steps": 16,
    "blocks": {
        "vision.blocks.0": {
            "precision": "int8",
            "reason": "fast",
            "saved_ms": 1.25,
            "metrics": {"action_mean_error": 0.0123, "action_max_error": 0.1},
        },
        "decoder.layers.1.block": {
            "precision": "fp32",
            "reason": "slow",
            "saved_ms": -0.5,
            "metrics": {"action_mean_error": 0.0456, "action_max_error": 0.2},
        },
    },
    "metrics": {"action_max_error": 0.0187},
    "int8_metrics": {"action_max_error": 0.1},
    "uniform_metrics": {"action_max_error": 0.2},
    "time_ratios": {"mixed/fp32": 0.625},
    "num_measured": 3,
    "num_reused": 0,
}
CALL_MS = {"fp32": 18.0, "int8": 9.0, "int4-weight": 13.0}


def head(measured_at: str = "2026-11-21T12:00:00+00:00", machine: Machine = LAPTOP) -> dict[str, object]:
    return {"measured_at": measured_at, "commit": "0123456789abcdef0123-dirty", "machine": machine, "versions": VERSIONS}


def times(median_ms: float, seed: int = 0) -> Summary:
    return summarise(median_ms * np.random.default_rng(seed).gamma(20.0, 1 / 20.0, 200))


def meter() -> PowerRecord:
    return PowerRecord(
        source="board rail",
        energy_j=70.0,
        mean_w=7.25,
        peak_w=9.5,
        joules_per_action=0.125,
        joules_per_action_above_idle=None,
    )


def resources(power: tuple[PowerRecord, ...] = (), power_reason: str = "no meter on this machine") -> ResourceRecord:
    return ResourceRecord(
        duration_s=10.0,
        num_actions=560,
        num_samples=100,
        period_s=0.1,
        sampler_share=0.01,
        rss_start_bytes=400_000_000,
        rss_peak_bytes=432_100_000,
        available_start_bytes=None,
        available_lowest_bytes=None,
        power=power,
        power_reason=power_reason,
        temperatures=(),
        temperatures_reason="no sensor",
    )


def variant(
    label: str, precision: str, *, execute_steps: int = 1, with_resources: ResourceRecord | None = None
) -> VariantResult:
    stages = {
        stage: times(CALL_MS[precision] * part, seed)
        for seed, (stage, part) in enumerate({"backbone": 0.9, "head": 0.1, "total": 1.0}.items())
    }
    return VariantResult(
        name=label,
        role="bundle",
        source=f"bundles/{label}",
        policy="test-policy",
        precision=precision,
        block_precisions={"vision": precision},
        settings={"providers": "CPUExecutionProvider", "threads": "2"},
        size_bytes=SIZES[precision],
        load_rss_bytes=70_200_000,
        per_call_ms=stages,
        per_control_step_ms={stage: summary.divided(execute_steps) for stage, summary in stages.items()},
        resources=with_resources,
    )


def latency_report(
    *variants: VariantResult,
    machine: Machine = LAPTOP,
    measured_at: str = "2026-11-21T13:00:00+00:00",
    execute_steps: int = 1,
) -> LatencyReport:
    baseline = variants[0].name
    return LatencyReport(
        **head(measured_at, machine),
        conditions=LatencyConditions(
            instruction="open it",
            inputs="seeded noise",
            execute_steps=execute_steps,
            warmup=20,
            iterations=200,
            settle_ms=20.0,
            threads=2,
            spinning="within-call",
            seed=0,
            environment={},
        ),
        peak_rss_bytes=None,
        variants=variants,
        comparisons=tuple(
            Comparison(variant=one.name, baseline=baseline, stage="total", speedup=Ratio(value=2.0, low=1.9, high=2.1))
            for one in variants[1:]
        ),
        noise_floor=Ratio(value=1.01, low=0.97, high=1.04),
    )


def policy(label: str, precision: str, trained_on: str | None = None) -> PolicyRecord:
    return PolicyRecord(
        label=label,
        path=f"bundles/{label}",
        policy="test-policy",
        precision=precision,
        block_precisions={"vision": precision},
        manifest_sha256=hashlib.sha256(label.encode()).hexdigest(),
        size_bytes=SIZES[precision],
        chunk_size=8,
        frame_stride=1,
        provenance={},
        trained_on=trained_on,
        forced_past=(),
    )


def chain_result(level: float, num_chains: int = 200) -> ChainResult:
    solved = np.random.default_rng(int(1000 * level)).binomial(5, level, num_chains)
    mean = float(solved.mean())
    return ChainResult(
        num_chains=num_chains,
        average_length=Mean(n=num_chains, value=mean, low=mean - 0.21, high=mean + 0.19),
        success_rates={str(n): proportion(int((solved >= n).sum()), num_chains) for n in range(1, 6)},
        task_success=Ratio(value=level, low=level - 0.05, high=level + 0.05),
        mean_solved_steps=88.5,
        tasks={
            task: TaskScore(success=proportion(min(index, 20), 20 + index % 3), mean_steps=80.0)
            for index, task in enumerate(TASKS[:-1])
        },
        num_solved=tuple(int(value) for value in solved),
    )


def success_row(label: str, precision: str, steps: int, level: float, reference: str | None) -> SuccessRow:
    kind: Kind = "closed-loop" if steps == 1 else "open-loop"
    return SuccessRow(
        name=f"{label}, {steps} steps",
        policy=label,
        precision=precision,
        mode=kind,
        kind=kind,
        execute_steps=steps,
        scene="D",
        language="evaluation",
        chains=chain_result(level),
        single_tasks=SingleTaskResult(
            starts_per_task=20,
            success=Proportion(successes=612, n=680, value=0.9, low=0.875, high=0.92),
            mean_solved_steps=61.25,
            tasks={"open_drawer": TaskScore(success=proportion(19, 20), mean_steps=40.0)},
        ),
        paired=None
        if reference is None
        else Paired(
            reference=reference,
            average_length_difference=Mean(n=200, value=-0.125, low=-0.25, high=0.03),
            average_length_share=Ratio(value=0.957, low=0.911, high=1.004),
            single_task_difference=None,
            single_task_share=None,
        ),
        jerk=0.0312,
        call_ms=times(25.0),
        num_inferences=4321,
        num_control_steps=4321 * steps,
        rollout_seconds=987.0,
        num_workers=2,
        renderer="egl",
    )


def success_report(labels: dict[str, str], steps: tuple[int, ...] = (1, 4)) -> SuccessReport:
    """Return rows for each label (its precision is the value) and number of steps; the first is the reference."""
    rows = []
    for place, (label, precision) in enumerate(labels.items()):
        for number in steps:
            reference = rows[0].name if rows else None
            rows.append(success_row(label, precision, number, 0.82 - 0.03 * place - 0.02 * number, reference))
    return SuccessReport(
        **head(),
        conditions=SuccessConditions(
            environment="playtable",
            mode=None,
            num_chains=200,
            chains_sha256="1" * 64,
            starts_per_task=20,
            max_steps=360,
            seed=0,
            control_hz=30.0,
            backend="onnxruntime",
            threads=1,
            executor="processes",
        ),
        policies=tuple(policy(label, precision, "A,B,C") for label, precision in labels.items()),
        rows=tuple(rows),
        not_possible=(
            NotPossible(policy="int8", precision="int8", execute_steps=16, reason="the policy predicts 8 steps, not 16"),
        ),
        wall_seconds=1234.0,
    )


def sweep_report(labels: dict[str, str], steps: tuple[int, ...] = (1, 2, 4, 8)) -> SweepReport:
    success = success_report(labels, steps)
    latency = latency_report(*(variant(label, precision) for label, precision in labels.items()))
    calls = {one.name: one.per_call_ms["total"] for one in latency.variants}
    return SweepReport(
        **head(),
        success=success,
        latency=latency,
        rows=tuple(
            SweepRow(
                row=row.name,
                variant=row.policy,
                per_call_ms=calls[row.policy],
                per_control_step_ms=calls[row.policy].divided(row.execute_steps),
                completion_s=2.95,
                synchronous_completion_s=None,
                jerk=row.jerk,
            )
            for row in success.rows
        ),
    )


def write_gif(path: Path) -> Path:
    """Write a picture of one transparent pixel."""
    path.write_bytes(bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"))
    return path
