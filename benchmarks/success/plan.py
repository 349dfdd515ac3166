"""Plan of a success measurement: which bundle, in which loop, how many steps per call, where and in which words."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from rfedge.benchmarks.success.chains import ChainPlan
from rfedge.benchmarks.success.report import Kind, NotPossible, PolicyRecord, kind_of
from rfedge.bundle.artifact import MANIFEST_NAME, Bundle, TensorRtRecord, hash_file, load_bundle
from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS
from rfedge.envs.interface import EnvironmentIdentity
from rfedge.envs.tasks import TASKS, check_task
from rfedge.errors import BackendUnavailableError, ConfigError, one_of
from rfedge.policies import bundle_name
from rfedge.records.plan import Option, Uses, check_least
from rfedge.runtimes.backends.base import GraphRunner, RuntimeSettings, Stage
from rfedge.runtimes.backends.registry import BACKENDS, DEFAULT_BACKEND
from rfedge.runtimes.control.controllers import SYNCHRONOUS_MODES, choose_loop
from rfedge.runtimes.control.limits import MAX_STEPS
from rfedge.runtimes.control.modes import check_execute_steps
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.rollout.policy_source import TORCH, PolicyLoop, TorchPolicy
from rfedge.runtimes.rollout.rollout_session import Simulator

ENRICHED: Final = "enriched"


def parse_tasks(text: str, every: tuple[str, ...] = TASKS) -> tuple[str, ...]:
    """Read "all" or names with commas between. Raises ConfigError for an unknown name."""
    return every if text == "all" else tuple(check_task(name.strip()) for name in text.split(",") if name.strip())


def _parse_decay(text: str) -> float | None:
    decay = math.nan
    with suppress(ValueError):
        decay = math.inf if text == "none" else float(text)
    if math.isnan(decay) or (math.isinf(decay) and text != "none"):
        remedy = "Put commas between: none,0."
        raise ConfigError("--ensemble", got=repr(text), expected="finite numbers or none", remedy=remedy)
    return None if text == "none" else decay


# What records call it where they name a backend.
EMULATED: Final = "tensorrt, emulated"


@dataclass(frozen=True, slots=True)
class EmulatedEngineLoop(PolicyLoop):
    """A bundle that computes on this CPU what its TensorRT engines would (`rfedge.export.tensorrt.engine_proof`)."""

    def load(self) -> EdgePolicy:
        """Write the emulated graphs to a folder that is gone once they are loaded, and load them."""
        from rfedge.runtimes.backends.ort import OrtRunner, open_bundle
        from rfedge.runtimes.policy.backbone import open_backbone

        bundle = load_bundle(self.bundle)
        parts = open_bundle(self.bundle, self.settings)
        with tempfile.TemporaryDirectory() as folder:
            graphs = _write_graphs(bundle, Path(folder))

            def make_runner(stage: Stage, _graph: Path, settings: RuntimeSettings) -> GraphRunner:
                contract = bundle.contract.graphs[stage]
                return OrtRunner(stage, graphs[stage], contract, settings, disabled_optimizers=DISABLED_OPTIMIZERS)

            return EdgePolicy(
                dataclasses.replace(
                    parts,
                    backend=EMULATED,
                    backbone=open_backbone(bundle, self.settings, make_runner, for_cpu=False),
                    head=make_runner("head", graphs["head"], self.settings),
                    precision=engine_precision(bundle),
                )
            )


def engine_precision(bundle: Bundle) -> str:
    """Return what the engines of a bundle compute in, such as "int8 + fp16, 21 nodes in fp32"."""
    islands = sum(len(form.islands) for form in _record(bundle).graphs.values())
    quantized = "" if (asked := bundle.manifest.precision.requested) == "fp16" else f"{asked} + "
    return f"{quantized}fp16" + (f", {islands} nodes in fp32" if islands else "")


def _record(bundle: Bundle) -> TensorRtRecord:
    record = bundle.manifest.tensorrt
    if record is None or all(form.floats == "fp32" for form in record.graphs.values()):
        raise ConfigError(
            f"--emulate-engines of bundle {bundle.root}",
            got="engines that compute in the types of its graphs",
            expected="engines in fp16",
            remedy="Leave the option out: the bundle itself runs what its engines would.",
        )
    return record


def _write_graphs(bundle: Bundle, folder: Path) -> dict[Stage, Path]:
    """Return graph -> what to run for it; graphs whose engines keep their types are those of the bundle."""
    try:
        from rfedge.export.tensorrt.engine_proof import write_emulation
    except ModuleNotFoundError as error:
        got, remedy = f"no module {error.name!r}", "Install the extra that exports: pip install 'rfedge[export]'."
        raise BackendUnavailableError("--emulate-engines", got=got, expected="an installed library", remedy=remedy) from None
    found: dict[Stage, Path] = {}
    for name, form in _record(bundle).graphs.items():
        found[name] = bundle.graph(name, for_cpu=True)
        if form.floats == "fp16":
            found[name] = folder / f"{name}.onnx"
            write_emulation(bundle.path(name), form.islands, found[name])
    return found


@dataclass(frozen=True)
class SuccessPlan:
    bundles: tuple[Path, ...]  # folders; the first is what the others are compared with
    torch: tuple[TorchPolicy, ...] = ()  # checkpoints in PyTorch, after the bundles
    emulate_engines: Annotated[
        bool,
        Option(
            "Add rows of what each bundle's TensorRT engines compute in int8 and fp16, emulated on this CPU.", panel="Rows"
        ),
    ] = False
    # what a row is compared with: the `first` row, or of its own checkpoint the first row in the `same-loop`
    pairing: Literal["first", "same-loop"] = "first"
    # empty takes the precision, with the name of the folder or of the shipped policy where that is not unique
    labels: Annotated[
        tuple[str, ...], Option("Name of a bundle in the rows; once for each, in order, emulated ones last.", flag="--label")
    ] = ()
    trained_on: Annotated[
        tuple[str, ...], Option("Training data of a bundle, such as A,B,C, where it does not say; once for each, in order.")
    ] = ()
    execute_steps: Annotated[
        tuple[int, ...],
        Option(
            "Control steps per policy call, with commas between; default: as each policy was trained. Several are timed, "
            "too, and those beyond a chunk are listed.",
            commas=True,
        ),
    ] = ()
    mode: Annotated[
        str | None,
        Option(
            "closed-loop, open-loop or jump-step; default: what fits the steps and the training.", choices=SYNCHRONOUS_MODES
        ),
    ] = None
    # each of them for every row whose chunks overlap, see `rfedge.runtimes.control.ensembling`; None plays the newest chunk
    ensembles: Annotated[
        tuple[float | None, ...],
        Option(
            "Where chunks overlap, play the weighted mean of them: decays with commas between, 0 weighs "
            "all alike, below 0 newer ones more; `none` plays the newest chunk. Each is a row.",
            flag="--ensemble",
            commas=True,
            parse=_parse_decay,
            text="none",
        ),
    ] = (None,)
    kinds: Annotated[
        tuple[Kind, ...],
        Option(
            "Only these rows, with commas between: closed-loop and jump-step (run as trained), open-loop (trained on every "
            "frame, run with more execute_steps), other.",
            commas=True,
        ),
    ] = ()
    worlds: tuple[Simulator, ...] = (Simulator(),)
    languages: tuple[str, ...] = ("evaluation",)  # see `rfedge.benchmarks.success.chains.ChainPlan`
    # held-out sentences that are never sampled; `run_success` adds those that a bundle does not know, so that all of them
    # get the same
    left_out: frozenset[str] = frozenset()
    starts_per_task: Annotated[
        int,
        Option(
            "Besides chains, prepared starts of every task; 0 for none.",
            flag="--single-tasks",
            panel="Chains and tasks",
            min=0,
        ),
    ] = 0
    tasks: Annotated[
        tuple[str, ...], Option("With --single-tasks: `all`, or names with commas between.", parse=parse_tasks, text="all")
    ] = TASKS
    max_steps: Annotated[int, Option("Control steps for each task.", min=1)] = MAX_STEPS
    seed: Annotated[
        int, Option("Of instructions and intervals, and number of the first start, see `rfedge run --seed`.", min=0)
    ] = 0
    backend: Annotated[
        str, Option("Backend of the bundles: onnxruntime, openvino or tensorrt.", panel="Machine", choices=BACKENDS)
    ] = DEFAULT_BACKEND
    # one thread, so that workers do not fight for the cores, and so that the order of sums is the same on every machine
    settings: Annotated[
        RuntimeSettings, Uses("providers", threads="Threads of a policy in each worker; 0 is the backend's own choice.")
    ] = field(default_factory=lambda: RuntimeSettings(threads=1))
    skip_impossible: bool = False  # list combinations that cannot be run instead of refusing the plan

    def __post_init__(self) -> None:
        check_least(1, {"bundles": len(self.bundles), "ensembles": len(self.ensembles)}, remedy="Name one.")
        check_least(1, {"execute_steps": min(self.execute_steps, default=1)})
        check_least(0, {"single_tasks": self.starts_per_task, "seed": self.seed})
        num_policies = len(self.bundles) * (1 + self.emulate_engines) + len(self.torch)
        for name, values in (("label", self.labels), ("trained-on", self.trained_on)):
            if values and len(values) != num_policies:
                got, remedy = f"{len(values)} for {num_policies} bundles", f"Repeat --{name} in the order of the bundles."
                raise ConfigError(f"--{name}", got=got, expected="one for each bundle or none", remedy=remedy)
        for kind in self.kinds:
            one_of(get_args(Kind), kind, "--kinds", remedy="Name some of these.")
        scenes = [world.scene for world in self.worlds]
        for name, listed in (
            ("execute-steps", self.execute_steps),
            ("label", self.labels),
            ("scene", scenes),
            ("ensemble", self.ensembles),
        ):
            twice = [value for value in listed if list(listed).count(value) > 1]
            if twice:
                raise ConfigError(f"--{name}", got=f"{twice[0]} twice", expected="each once", remedy="Leave it out.")


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row to run; `torch` is set for a checkpoint, `reference` is the row it is paired with, or None."""

    policy: PolicyRecord
    mode: str
    execute_steps: int
    ensemble: float | None
    world: Simulator
    language: str
    torch: TorchPolicy | None = None
    reference: RowPlan | None = None

    @property
    def name(self) -> str:
        """Name in reports; unique in a plan."""
        ensemble = "" if self.ensemble is None else f" ensemble {self.ensemble:g}"
        return f"{self.policy.label} k{self.execute_steps}{ensemble} {self.world.scene} {self.language}"

    @property
    def folder_name(self) -> str:
        return _as_folder_name(self.name)

    def chain_plan(self, plan: SuccessPlan, environment: EnvironmentIdentity | None = None) -> ChainPlan:
        """Return what runs it; it must be in `environment`, where other rows have been."""
        facts = {
            "manifest_sha256": self.policy.manifest_sha256,
            "mode": self.mode,
            "execute_steps": str(self.execute_steps),
            "backend": self.policy.backend or plan.backend,
            "threads": str(plan.settings.threads),
        }
        settings = plan.settings
        if self.torch is not None:
            facts |= {"torch_dtype": self.torch.dtype, "torch_weights": self.torch.weights}
            settings = self.torch.settings(settings)
        if self.ensemble is not None:
            facts["ensemble"] = f"{self.ensemble:g}"
        bundle = Path(self.policy.path).resolve()  # a worker elsewhere has another working folder
        make_loop = EmulatedEngineLoop if facts["backend"] == EMULATED else PolicyLoop
        return ChainPlan(
            make_agent=make_loop(bundle, self.mode, self.execute_steps, self.ensemble, facts["backend"], settings),
            agent_name=self.policy.label,
            agent_facts=facts,
            world=self.world,
            language=self.language,
            left_out=plan.left_out if self.language == ENRICHED else frozenset(),
            max_steps=plan.max_steps,
            seed=plan.seed,
            environment=environment,
        )


def describe_policies(plan: SuccessPlan) -> tuple[PolicyRecord, ...]:
    """Read what each policy is; every file's hash is checked."""
    found = [_describe_bundle(path) for path in plan.bundles] + [_describe_checkpoint(item, plan) for item in plan.torch]
    if plan.emulate_engines:
        found += [_describe_engines(path) for path in plan.bundles]
    precisions = [policy.precision for policy in found]
    labels = list(plan.labels) or [
        policy.precision
        if precisions.count(policy.precision) == 1
        else f"{policy.precision}-{Path(bundle_name(Path(policy.path))).resolve().name}"
        for policy in found
    ]
    folders = [_as_folder_name(label) for label in labels]
    for label, folder in zip(labels, folders, strict=True):
        if folders.count(folder) > 1:
            remedy = "Tell them apart by --label."
            raise ConfigError("label", got=f"{label!r} twice", expected="one for each bundle", remedy=remedy)
    return tuple(
        policy.model_copy(
            update={"label": label, "trained_on": plan.trained_on[index] if plan.trained_on else policy.trained_on}
        )
        for index, (label, policy) in enumerate(zip(labels, found, strict=True))
    )


def _describe_bundle(path: Path) -> PolicyRecord:
    bundle = load_bundle(path)
    manifest = bundle.manifest
    return PolicyRecord(
        label="",
        path=str(bundle.root),
        policy=bundle.policy.name,
        precision=manifest.precision.effective,
        block_precisions={block: str(found) for block, found in manifest.precision.blocks.items()},
        manifest_sha256=hash_file(bundle.root / MANIFEST_NAME),
        size_bytes=bundle.size_bytes,
        chunk_size=bundle.policy.chunk_size,
        frame_stride=bundle.policy.frame_stride,
        provenance=manifest.source,
        trained_on=",".join(manifest.scenes) or None,
        forced_past=manifest.parity.forced_past,
    )


def _describe_engines(path: Path) -> PolicyRecord:
    engines = {"precision": engine_precision(load_bundle(path, verify=False)), "backend": EMULATED}
    return _describe_bundle(path).model_copy(update=engines)


def _describe_checkpoint(torch: TorchPolicy, plan: SuccessPlan) -> PolicyRecord:
    with torch.open(plan.settings) as policy:
        from rfedge.model import checkpoint_sha256  # PyTorch, which is here by now

        parts, sha256 = policy.parts, checkpoint_sha256(torch.checkpoint)
        return PolicyRecord(
            label="",
            path=str(torch.checkpoint),
            policy=parts.config.name,
            precision=parts.precision,
            block_precisions=dict(parts.block_precisions),
            manifest_sha256=sha256,
            size_bytes=parts.size_bytes,
            chunk_size=parts.config.chunk_size,
            frame_stride=parts.config.frame_stride,
            provenance={"checkpoint_sha256": sha256, "name": parts.config.name},
            trained_on=None,
            forced_past=(),
            backend=TORCH,
        )


def lay_out(plan: SuccessPlan, policies: Sequence[PolicyRecord]) -> tuple[list[RowPlan], tuple[NotPossible, ...]]:
    """Return the rows, each with its reference, and what cannot be run."""
    asked = [
        (policy, steps)
        for policy in policies
        for steps in plan.execute_steps or (choose_loop(policy, plan.mode, modes=SYNCHRONOUS_MODES)[1],)
    ]
    reasons = {
        (policy.label, steps): reason
        for policy, steps in asked
        if (reason := _why_not(policy, plan.mode, steps)) is not None
    }
    possible = [
        (policy, steps)
        for policy, steps in asked
        if (policy.label, steps) not in reasons and (not plan.kinds or kind_of(steps, policy.frame_stride) in plan.kinds)
    ]
    if reasons and not (possible and plan.skip_impossible):
        (label, steps), reason = next(iter(reasons.items()))
        raise ConfigError(f"{label} with {steps} steps per call: {reason}")
    if not possible:
        kinds = dict.fromkeys(kind_of(steps, policy.frame_stride) for policy, steps in asked)
        remedy = "Leave it out."
        raise ConfigError("--kinds", got=", ".join(plan.kinds), expected=f"some of {', '.join(kinds)}", remedy=remedy)
    torch = dict(zip([policy.label for policy in policies][len(plan.bundles) :], plan.torch, strict=False))
    rows = []
    for world in plan.worlds:
        for language in plan.languages:
            references: dict[tuple[object, ...], RowPlan] = {}
            for policy, steps in possible:
                mode, _ = choose_loop(policy, plan.mode, steps, modes=SYNCHRONOUS_MODES)
                for ensemble in plan.ensembles if steps < policy.chunk_size else (None,):
                    same_loop = (policy.provenance.get("checkpoint_sha256"), mode, steps, ensemble)
                    # one key for all pairs every row with the first; a loop's own key, with the first row of that loop
                    paired = () if plan.pairing == "first" else same_loop
                    row = RowPlan(
                        policy, mode, steps, ensemble, world, language, torch.get(policy.label), references.get(paired)
                    )
                    references.setdefault(paired, row)
                    rows.append(row)
    not_possible = tuple(
        NotPossible(
            policy=policy.label, precision=policy.precision, execute_steps=steps, reason=reasons[policy.label, steps]
        )
        for policy, steps in asked
        if (policy.label, steps) in reasons
    )
    return rows, not_possible


def _why_not(policy: PolicyRecord, mode: str | None, steps: int) -> str | None:
    """Return why a policy cannot be run so; None where it can."""
    try:
        check_execute_steps(steps, policy.chunk_size)
        choose_loop(policy, mode, steps)
    except ConfigError as error:
        return str(error)
    return None


def _as_folder_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "row"
