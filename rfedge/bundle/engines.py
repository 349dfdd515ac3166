"""TensorRT engines beside a bundle: made on the device, bound to it, and opened only there.

    bundle/engines/<fingerprint>/
      engine.json      this file's `EngineFolder`: where the engines run, what each was made from, sha256 of each plan
      backbone.plan    and head.plan; of a backbone in two stages vision.plan and decoder.plan
      audit.json       what every layer of the engines computes in
      timing.cache     measurements that make the next build quicker (TensorRT; TensorRT for RTX keeps none)

Engines come after the bundle and differ per device, so they are no artifacts of its manifest; engine.json vouches for
them instead. A plan is machine code: it is opened only when its target is this very device and its sha256 is right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pydantic import Field, ValidationError

from rfedge.bundle.artifact import ENGINES_FOLDER, Bundle, hash_file
from rfedge.contract import GraphName
from rfedge.errors import ArtifactError, ContractError
from rfedge.records.record import Record, first_fault

RECORD_NAME: Final = "engine.json"
AUDIT_NAME: Final = "audit.json"
TIMING_CACHE_NAME: Final = "timing.cache"
SCHEMA_VERSION: Final = 1
EngineStage = GraphName


class EngineTarget(Record):
    """The one kind of device that an engine runs on."""

    module: str  # "tensorrt" or "tensorrt-rtx"
    version: str  # of that module; a plan is bound to it
    sm: int  # compute capability as one number: 87 is 8.7
    ahead_of_time: bool = False  # compiled without the device; then CUDA and driver are not part of the target
    cuda: str = ""  # newest CUDA version the driver serves, empty ahead of time
    driver: str = ""  # driver version, empty ahead of time

    @property
    def fingerprint(self) -> str:
        where = "aot" if self.ahead_of_time else f"cuda{self.cuda}-driver{self.driver}"
        return f"{self.module}-{self.version}-sm{self.sm}-{where}"

    def reason_not_on(self, device: EngineTarget) -> str | None:
        """Say why an engine of this target does not run on `device`; None when it does."""
        if self.module != device.module:
            return f"built with {self.module}, this is {device.module}"
        if self.sm != device.sm:
            return f"built for SM{self.sm}, this is SM{device.sm}"
        if self.version != device.version:
            return f"built with {self.module} {self.version}, this is {device.version}"
        if self.ahead_of_time:
            return None
        for name in ("cuda", "driver"):
            if getattr(self, name) != getattr(device, name):
                return f"built under {name} {getattr(self, name)}, this is {getattr(device, name)}"
        return None


class EngineKey(Record):
    """Everything that decides what a plan is; two equal keys make the same engine."""

    graph_sha256: str
    weights_sha256: dict[str, str]
    target: EngineTarget
    builder: dict[str, str | int | bool]

    def reason_stale(self, wanted: EngineKey) -> str | None:
        """Say what changed between this key and the one `wanted` now; None when nothing did."""
        if self.graph_sha256 != wanted.graph_sha256:
            return f"the graph changed ({self.graph_sha256[:12]} -> {wanted.graph_sha256[:12]})"
        if self.weights_sha256 != wanted.weights_sha256:
            return "the weights changed"
        if (reason := self.target.reason_not_on(wanted.target)) is not None or self.target != wanted.target:
            return reason or "built for another target"
        changed = [
            f"{name} {self.builder.get(name)} -> {wanted.builder.get(name)}"
            for name in sorted({*self.builder, *wanted.builder})
            if self.builder.get(name) != wanted.builder.get(name)
        ]
        return f"builder settings changed: {', '.join(changed)}" if changed else None


class TextProfile(NamedTuple):
    """One optimisation profile of an engine: its number, and how many tokens to pad an instruction to."""

    number: int
    num_tokens: int


class EngineRecord(Record):
    """One plan: what it was made from and what it weighs."""

    key: EngineKey
    plan: str  # file name inside the folder
    sha256: str
    size_bytes: int
    precisions: dict[str, int]  # number of weight MatMuls per precision the engine computes them in
    build_seconds: float
    weights_bytes: int = 0  # weights inside the engine as the builder reports them, 0 where it does not say
    activations_bytes: int = 0  # device memory one execution needs, 0 where the builder does not say
    # number of layers per precision, as the audit has it; empty in an older record
    layers: dict[str, int] = Field(default_factory=dict)
    # num_attention, num_fused: attentions, and how many of them are one kernel
    num_attention: int = 0
    num_fused: int = 0
    # numbers of tokens that the engine takes, the optimisation profile of each at the same place; empty for a graph that
    # reads no text. They are part of the key, as the sizes of its inputs.
    text_lengths: tuple[int, ...] = ()

    def choose_profile(self, num_tokens: int) -> TextProfile:
        """Return the smallest profile that `num_tokens` fit, see `rfedge.runtimes.policy.text.pad_instruction`. Raises
        ContractError if it is longer than the engine's longest, or the engine reads no text.
        """
        for index, length in enumerate(self.text_lengths):
            if num_tokens <= length:
                return TextProfile(index, length)
        expected = f"at most {max(self.text_lengths, default=0)}, the longest text of this engine"
        remedy = "Say it in fewer words, or run `rfedge build` with a longer one in --text-lengths."
        raise ContractError("instruction", got=f"{num_tokens} tokens", expected=expected, remedy=remedy)


class EngineFolder(Record):
    format: Literal["rfedge-engines"] = "rfedge-engines"
    schema_version: Literal[1] = SCHEMA_VERSION
    target: EngineTarget
    stages: dict[EngineStage, EngineRecord]


def graph_hashes(bundle: Bundle, stage: EngineStage) -> tuple[str, dict[str, str]]:
    """Return sha256 of the stage's graph, and of each weights file beside it, from the verified manifest."""
    graph = next(artifact for artifact in bundle.manifest.artifacts if artifact.role == stage)
    weights = {
        artifact.path: artifact.sha256
        for artifact in bundle.manifest.artifacts
        if artifact.role == "weights" and artifact.path.startswith(graph.path)
    }
    return graph.sha256, weights


def engine_folders(bundle: Bundle) -> list[Path]:
    """Return the finished engine folders; what a killed build left behind is not among them."""
    root = bundle.root / ENGINES_FOLDER
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if not path.name.startswith(".") and (path / RECORD_NAME).is_file())


def read_engine_folder(folder: Path) -> EngineFolder:
    """Read engine.json. Raises ArtifactError if it is missing, unreadable or of another schema version."""
    try:
        return EngineFolder.model_validate_json((folder / RECORD_NAME).read_bytes())
    except OSError:
        got, expected = f"no {RECORD_NAME}", "one"
    except ValidationError as error:
        got, expected = f"{RECORD_NAME} with {first_fault(error)}", f"schema version {SCHEMA_VERSION}"
    raise ArtifactError(f"engines {folder.name}", got=got, expected=expected, remedy="Run `rfedge build` again.")


def check_plan(folder: Path, record: EngineRecord) -> str | None:
    """Say what is wrong with the plan's file; None when its size and sha256 are those recorded."""
    plan = (folder / record.plan).resolve()
    if plan.parent != folder.resolve():
        return f"plan path {record.plan!r} outside its folder"
    if not plan.is_file():
        return f"no file {record.plan}"
    if plan.stat().st_size != record.size_bytes:
        return f"{record.plan} of {plan.stat().st_size} bytes instead of {record.size_bytes}"
    if (actual := hash_file(plan)) != record.sha256:
        return f"{record.plan} with sha256 {actual[:12]} instead of {record.sha256[:12]}"
    return None


def find_engine(bundle: Bundle, stage: EngineStage, device: EngineTarget) -> tuple[Path, EngineRecord]:
    """Return the plan of `stage` for `device`, verified; one built there goes before one built ahead of time.

    Raises ArtifactError if no engine fits; the text names the reason of each one that is there.
    """
    reasons = []
    candidates: list[tuple[bool, Path, EngineRecord]] = []
    for folder in engine_folders(bundle):
        found, reason = _check_folder(bundle, folder, stage, device)
        if found is None:
            reasons.append(f"{folder.name} ({reason})")
        else:
            candidates.append((found.key.target.ahead_of_time, folder / found.plan, found))
    if candidates:
        _, plan, record = min(candidates, key=lambda item: item[0])
        return plan, record
    raise ArtifactError(
        f"{stage} engine of {bundle.root}",
        got="; ".join(reasons) or "none",
        expected=f"one for {device.module} {device.version} on SM{device.sm}",
        remedy=f"Run `rfedge build {bundle.root}` on this device.",
    )


def _check_folder(
    bundle: Bundle, folder: Path, stage: EngineStage, device: EngineTarget
) -> tuple[EngineRecord, None] | tuple[None, str]:
    try:
        content = read_engine_folder(folder)
    except ArtifactError as error:
        return None, str(error)
    record = content.stages.get(stage)
    if record is None:
        return None, f"no {stage}"
    if (reason := record.key.target.reason_not_on(device)) is not None:
        return None, reason
    graph_sha256, weights_sha256 = graph_hashes(bundle, stage)
    current: dict[str, Any] = {"graph_sha256": graph_sha256, "weights_sha256": weights_sha256}
    if (reason := record.key.reason_stale(record.key.model_copy(update=current))) is not None:
        return None, f"stale: {reason}"
    if (reason := check_plan(folder, record)) is not None:
        return None, reason
    return record, None
