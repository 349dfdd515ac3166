"""Times variants of one policy against each other, fairly.

All are called in turn, in a new random order each round, in one process: when the machine slows down, it slows down for all.
The first bundle is loaded twice; the ratio of these two is the noise floor below which a difference means nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import psutil
from pydantic import SerializerFunctionWrapHandler, model_serializer

from rfedge.benchmarks.latency.garbage import collector_at_rest
from rfedge.benchmarks.latency.profile import CallProfile, profile_policy
from rfedge.bundle.artifact import load_bundle
from rfedge.contract import PolicyContract
from rfedge.errors import ConfigError, GateError
from rfedge.jobs.progress import Count
from rfedge.machine.power.sampler import Sampler
from rfedge.messages import STATE_SIZE, Observation
from rfedge.policies import bundle_name, find_bundle, find_checkpoint
from rfedge.records.machine import Measurement, peak_rss_bytes, provenance
from rfedge.records.plan import Option, Uses, check_least
from rfedge.records.record import Record
from rfedge.records.resources import ResourceRecord
from rfedge.records.statistics import Ratio, Summary, ratio_of_medians, summarise
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import AUTO, BACKENDS
from rfedge.runtimes.control.modes import check_execute_steps
from rfedge.runtimes.control.scheduling import check_priority, realtime_priority
from rfedge.runtimes.policy.edge_policy import STAGES, EdgePolicy
from rfedge.runtimes.rollout.policy_source import TORCH, TorchPolicy
from rfedge.runtimes.roofline.this_machine import measure_cpu


class LatencyConditions(Record):
    """Everything that was chosen."""

    instruction: str
    inputs: str
    execute_steps: int
    warmup: int  # untimed rounds, at least one window, so that the head is timed at its steady cost
    iterations: int
    settle_ms: float
    threads: int
    spinning: str
    realtime_priority: int | None = None  # of all threads; None for ordinary scheduling
    seed: int
    order: Literal["interleaved, shuffled per round"] = "interleaved, shuffled per round"
    environment: dict[str, str]


class VariantResult(Record):
    """One way to run the policy."""

    name: str
    # a bundle, the PyTorch original, or the first bundle once more (the noise floor)
    role: Literal["bundle", "torch", "noise-floor"]
    source: str
    policy: str
    precision: str
    block_precisions: dict[str, str]
    settings: dict[str, str]  # what the backbone's backend reported about itself
    size_bytes: int
    # growth of the process while this variant was loaded; pages shared with an earlier variant are not counted twice
    load_rss_bytes: int
    per_call_ms: dict[str, Summary]
    per_control_step_ms: dict[str, Summary]  # the same divided by execute_steps
    # while it was called in a row; absent where that was not asked for
    resources: ResourceRecord | None = None

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(write(self), "resources")


class Comparison(Record):
    """`baseline` over `variant` by median of `stage`: above 1, `variant` is faster."""

    variant: str
    baseline: str
    stage: str
    speedup: Ratio


class LatencyReport(Measurement):
    format: Literal["rfedge-latency"] = "rfedge-latency"
    schema_version: int = 1
    conditions: LatencyConditions
    peak_rss_bytes: int | None
    variants: tuple[VariantResult, ...]
    comparisons: tuple[Comparison, ...]
    noise_floor: Ratio
    # the machine before the variants were called in a row; absent where that was not asked for
    idle: ResourceRecord | None = None
    # of the bundles whose backends tell, operator by operator; absent where that was not asked for
    profiles: tuple[CallProfile, ...] | None = None

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(_without_none(write(self), "idle"), "profiles")


def _without_none(document: dict[str, Any], field: str) -> dict[str, Any]:
    """Leave out a field that older documents have not, so that they are written as they were."""
    return {name: value for name, value in document.items() if name != field or value is not None}


Samples = dict[str, npt.NDArray[np.float64]]  # stage -> (round,) milliseconds
Role = Literal["bundle", "torch", "noise-floor"]
NOISE_FLOOR_SUFFIX: Final = " (again)"
NUM_OBSERVATIONS: Final = 16
_MOST_IDLE_S: Final = 5.0
# Thread pools other than onnxruntime's obey these; a report without them cannot be repeated.
_POOL_VARIABLES: Final = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class LatencyPlan:
    bundles: Annotated[
        tuple[Path, ...],
        Option("Bundle folders or shipped policies; the first is also the noise floor.", argument=True, parse=find_bundle),
    ]
    checkpoint: Annotated[
        Path | None, Option("Compare with this checkpoint or shipped policy in PyTorch.", parse=find_checkpoint)
    ] = None
    torch: tuple[TorchPolicy, ...] = ()  # checkpoints in PyTorch in other precisions
    backend: Annotated[
        str,
        Option(
            "Backend of the bundles: auto (what `rfedge tune` chose, else onnxruntime), onnxruntime, openvino or tensorrt.",
            panel="Policies",
            choices=BACKENDS,
        ),
    ] = AUTO
    settings: Annotated[
        RuntimeSettings, Uses("spinning", "providers", threads="Threads of every variant; 0 is each backend's own choice.")
    ] = field(default_factory=lambda: RuntimeSettings(threads=2))
    instruction: Annotated[str, Option("Instruction of every call.", panel="Calls")] = "pull the handle to open the drawer"
    execute_steps: Annotated[
        int | None, Option("Control steps that one policy call serves; default: as the first one was trained.")
    ] = None
    warmup: Annotated[int, Option("Untimed calls per variant.")] = 20  # raised to the policies' window if smaller
    iterations: Annotated[int, Option("Timed calls per variant.")] = 200
    settle_ms: Annotated[float, Option("Untimed pause before each call, for other threads to sleep.")] = 20.0
    seed: Annotated[int, Option("Seed of inputs, order and bootstrap.")] = 0
    realtime_priority: Annotated[
        int | None,
        Option("Schedule all threads before ordinary programs, 1 to 97: the noise of a shared machine goes down."),
    ] = None
    resource_seconds: Annotated[
        float, Option("Then call each variant back to back for this long and sample memory, power, temperature; 0 does not.")
    ] = 0.0

    profile: Annotated[
        bool, Option("Then time every operator: milliseconds per kind and per block, beside the machine's limit.")
    ] = False

    def __post_init__(self) -> None:
        check_priority(self.realtime_priority)
        check_least(1, {"bundles": len(self.bundles), "iterations": self.iterations})
        check_least(0, {"warmup": self.warmup, "settle_ms": self.settle_ms, "resource_seconds": self.resource_seconds})


@dataclass(frozen=True)
class _Variant:
    name: str
    role: Role
    policy: EdgePolicy
    load_rss_bytes: int


def run_latency(
    plan: LatencyPlan,
    *,
    observations: Sequence[Observation] | None = None,
    inputs: str = "seeded noise",
    on_round: Count = lambda *_: None,
) -> LatencyReport:
    """Load every variant, time them on the same observations, by default sampled from the seed, and report.

    Raises:
        ArtifactError: a bundle or the checkpoint cannot be loaded.
        ConfigError: `execute_steps` exceeds a policy's chunk size.
        BackendUnavailableError: a checkpoint was given and torch is missing, or this user may not have the priority.
    """
    with ExitStack() as stack:
        # Around the loading, too: the threads of a session are begun with it.
        stack.enter_context(realtime_priority(plan.realtime_priority, inherited=True))
        variants = _load(plan, stack)
        execute_steps = variants[0].policy.frame_stride if plan.execute_steps is None else plan.execute_steps
        for variant in variants:
            check_execute_steps(execute_steps, variant.policy.chunk_size)
        warmup = max(plan.warmup, *(variant.policy.config.window for variant in variants))
        if observations is None:
            observations = sample_observations(variants[0].policy.parts.contract, NUM_OBSERVATIONS, seed=plan.seed)
        samples = measure_latency(
            {variant.name: variant.policy for variant in variants},
            observations,
            plan.instruction,
            warmup=warmup,
            iterations=plan.iterations,
            seed=plan.seed,
            settle_ms=plan.settle_ms,
            on_round=on_round,
        )
        first, again = (samples[variants[0].name + end]["total"] for end in ("", NOISE_FLOOR_SUFFIX))
        idle, resources = _sample(variants, observations, plan, execute_steps)
        return LatencyReport(
            **provenance(),
            conditions=LatencyConditions(
                instruction=plan.instruction,
                inputs=inputs,
                execute_steps=execute_steps,
                warmup=warmup,
                iterations=plan.iterations,
                settle_ms=plan.settle_ms,
                threads=plan.settings.threads,
                spinning=plan.settings.spinning,
                realtime_priority=plan.realtime_priority,
                seed=plan.seed,
                environment={name: os.environ[name] for name in _POOL_VARIABLES if name in os.environ},
            ),
            peak_rss_bytes=peak_rss_bytes(),
            variants=tuple(
                _describe(variant, samples[variant.name], execute_steps, resources.get(variant.name)) for variant in variants
            ),
            comparisons=_compare(variants, samples, plan.seed),
            noise_floor=ratio_of_medians(first, again, seed=plan.seed),
            idle=idle,
            profiles=_profile(variants, plan) if plan.profile else None,
        )


def sample_observations(contract: PolicyContract, count: int, *, seed: int) -> list[Observation]:
    """Draw `count` frames of noise that satisfy the contract, the arm at rest; the same for the same seed."""
    rng = np.random.default_rng(seed)
    static, gripper = contract.backbone.input("image_static"), contract.backbone.input("image_gripper")
    at_rest = np.zeros(STATE_SIZE, np.float32)  # for policies that read it
    return [Observation(static.sample(rng)[0], gripper.sample(rng)[0], at_rest) for _ in range(count)]


def dataset_observations(path: Path) -> list[Observation]:
    """Return some frames spread evenly over a CALVIN dataset. Raises DatasetError if it is missing or damaged."""
    from rfedge.data.calvin import CalvinDataset
    from rfedge.data.statistics import evenly_spaced

    dataset = CalvinDataset.open(path)
    numbers = dataset.frame_numbers()
    chosen = evenly_spaced(len(numbers), NUM_OBSERVATIONS)
    return [Observation.from_dict(dataset.frame(numbers[index])) for index in chosen]


def measure_latency(
    policies: dict[str, EdgePolicy],
    observations: Sequence[Observation],
    instruction: str,
    *,
    warmup: int,
    iterations: int,
    seed: int,
    settle_ms: float = 0.0,
    on_round: Count = lambda *_: None,
) -> dict[str, Samples]:
    """Call every policy once a round, in shuffled order, on `observations` in a cycle; return ms per policy and stage."""
    order = list(policies)
    rng = np.random.default_rng(seed)
    samples = {name: {stage: np.empty(iterations) for stage in STAGES} for name in order}
    for policy in policies.values():
        policy.reset(instruction)
    with collector_at_rest():
        for index in range(-warmup, iterations):
            observation = observations[index % len(observations)]
            rng.shuffle(order)
            for name in order:
                if settle_ms:  # PyTorch's threads busy-wait after a call, see docs/how-to/choose_a_backend.md
                    time.sleep(settle_ms / 1000)
                timings_ms = policies[name].act(observation).timings_ms
                if index >= 0:
                    for stage in STAGES:
                        samples[name][stage][index] = timings_ms[stage]
            on_round(index + warmup + 1, warmup + iterations)
    return samples


def assert_faster(report: LatencyReport) -> None:
    """Check int8 < fp32 < torch by median total, each beyond what two equal variants differ by.

    Raises:
        ConfigError: the report lacks one of the three.
        GateError: a step of the order does not hold; the text has the measured ratio and the floor.
    """
    by_kind: dict[str, list[str]] = {"int8": [], "fp32": [], "torch": []}
    for variant in report.variants:
        kind = "torch" if variant.role == "torch" else variant.precision
        if variant.role != "noise-floor" and kind in by_kind:
            by_kind[kind].append(variant.name)
    missing = [kind for kind, names in by_kind.items() if not names]
    if missing:
        expected, remedy = "an int8 bundle, an fp32 bundle and --checkpoint", "Name all three."
        raise ConfigError("--assert-faster", got=f"no {missing[0]} variant", expected=expected, remedy=remedy)
    floor = max(report.noise_floor.high, 1.0 / report.noise_floor.low)
    for faster_kind, slower_kind in (("fp32", "torch"), ("int8", "fp32")):
        for faster in by_kind[faster_kind]:
            for slower in by_kind[slower_kind]:
                ratio = next(
                    c.speedup for c in report.comparisons if (c.variant, c.baseline, c.stage) == (faster, slower, "total")
                )
                if ratio.low <= 1.0 or ratio.value <= floor:
                    raise GateError(
                        f"speed of {faster!r} over {slower!r}",
                        got=f"x{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
                        expected=f"above x{max(floor, 1.0):.3f} (noise floor)",
                        remedy="Compare the stages in the table, or measure more iterations on a quiet machine.",
                    )


def _load(plan: LatencyPlan, stack: ExitStack) -> list[_Variant]:
    settings = plan.settings
    specs: list[tuple[Role, Path, str, RuntimeSettings]] = [
        ("bundle", path, plan.backend, settings) for path in plan.bundles
    ]
    if plan.checkpoint is not None:
        specs.append(("torch", plan.checkpoint, TORCH, settings))
    specs += [("torch", item.checkpoint, TORCH, item.settings(settings)) for item in plan.torch]
    specs.append(("noise-floor", plan.bundles[0], plan.backend, settings))
    for item in plan.torch:  # the libraries are loaded before memory is measured
        item.open(settings).close()
    variants: list[_Variant] = []
    for role, path, backend, chosen in specs:
        before_bytes = psutil.Process().memory_info().rss
        policy = stack.enter_context(EdgePolicy.load(path, backend=backend, settings=chosen))
        grown_bytes = psutil.Process().memory_info().rss - before_bytes
        taken = {variant.name for variant in variants}
        variants.append(_Variant(_name(role, policy, taken, variants), role, policy, grown_bytes))
    return variants


def _name(role: Role, policy: EdgePolicy, taken: set[str], variants: list[_Variant]) -> str:
    if role == "noise-floor":
        return variants[0].name + NOISE_FLOOR_SUFFIX
    name = f"torch {policy.parts.precision}" if role == "torch" else policy.parts.precision
    if name in taken:  # two bundles of one precision: tell them apart by folder or shipped name, then by number
        name = f"{name} ({Path(bundle_name(policy.parts.source)).resolve().name})"
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name} #{number}", number + 1
    return unique


def _sample(
    variants: list[_Variant], observations: Sequence[Observation], plan: LatencyPlan, execute_steps: int
) -> tuple[ResourceRecord | None, dict[str, ResourceRecord]]:
    """Call each variant in a row under its own sampler: called in turn, nobody could say whose joules they were."""
    if not plan.resource_seconds:
        return None, {}
    with Sampler() as sampler:
        time.sleep(min(plan.resource_seconds, _MOST_IDLE_S))
    idle, records = sampler.summary(), {}
    for variant in variants:
        if variant.role != "noise-floor":
            variant.policy.reset(plan.instruction)
            with Sampler() as sampler:
                ends_s, num_calls = time.monotonic() + plan.resource_seconds, 0
                while not num_calls or time.monotonic() < ends_s:
                    variant.policy.act(observations[num_calls % len(observations)])
                    num_calls += 1
            records[variant.name] = sampler.summary(num_calls * execute_steps, idle)
    return idle, records


def _profile(variants: list[_Variant], plan: LatencyPlan) -> tuple[CallProfile, ...]:
    device = measure_cpu(plan.settings.threads or None)
    found = [
        profile_policy(
            variant.name, variant.policy, load_bundle(variant.policy.parts.source, verify=False), device, plan.instruction
        )
        for variant in variants
        if variant.role == "bundle"
    ]
    return tuple(profile for profile in found if profile is not None)


def _describe(variant: _Variant, samples: Samples, execute_steps: int, resources: ResourceRecord | None) -> VariantResult:
    parts = variant.policy.parts
    per_call_ms = {stage: summarise(samples[stage]) for stage in STAGES}
    return VariantResult(
        name=variant.name,
        role=variant.role,
        source=bundle_name(parts.source),
        policy=parts.config.name,
        precision=parts.precision,
        block_precisions=dict(parts.block_precisions),
        settings=parts.backbone.effective_settings() | ({"tuned": parts.tuned} if parts.tuned else {}),
        size_bytes=parts.size_bytes,
        load_rss_bytes=variant.load_rss_bytes,
        per_call_ms=per_call_ms,
        per_control_step_ms={stage: summary.divided(execute_steps) for stage, summary in per_call_ms.items()},
        resources=resources,
    )


def _compare(variants: list[_Variant], samples: dict[str, Samples], seed: int) -> tuple[Comparison, ...]:
    """Every variant against PyTorch and against each fp32 bundle, for the stages that cost something."""

    def comparison(variant: str, baseline: str, stage: str) -> Comparison:
        ratio = ratio_of_medians(samples[baseline][stage], samples[variant][stage], seed=seed)
        return Comparison(variant=variant, baseline=baseline, stage=stage, speedup=ratio)

    baselines = [
        v.name for v in variants if v.role == "torch" or (v.role == "bundle" and v.policy.parts.precision == "fp32")
    ]
    compared = [v.name for v in variants if v.role == "bundle"]
    return tuple(
        comparison(name, baseline, stage)
        for baseline in baselines
        for name in compared
        if name != baseline
        for stage in ("total", "backbone", "head")
    )
