"""The policies of a table of precisions: every bundle that a checkpoint has not yet is exported, once.

A precision without kernels in ONNX Runtime on CPUs is run by PyTorch, straight from the checkpoint. Bundles lie in one
folder for each checkpoint and are kept, so that a killed measurement goes on and another one reuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rfedge.bundle.artifact import Bundle, load_bundle
from rfedge.errors import ArtifactError, ConfigError, did_you_mean
from rfedge.export.mixed.budget import Budget
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import export_checkpoint
from rfedge.jobs.progress import StageProgress
from rfedge.model import checkpoint_sha256
from rfedge.runtimes.rollout.policy_source import TorchPolicy

_BY_TORCH: Final = {
    "bf16": ("bfloat16", "as-is"),
    "nf4": ("float32", "nf4"),
    "llm-int8": ("float32", "llm-int8"),
}
# fp32 comes first: the others are compared with it.
TABLE_PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "int8-weight", "int4-weight", "mixed", "nf4", "llm-int8")
_ALL: Final = "all"


def parse_table_precisions(text: str) -> tuple[str, ...]:
    """Read "all" or "fp32,int8": fp32 is always among them, and first.

    Raises:
        ConfigError: an unknown name, or one twice.
    """
    if text.strip() == _ALL:
        return TABLE_PRECISIONS
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in TABLE_PRECISIONS:
            expected = did_you_mean(name, (*TABLE_PRECISIONS, _ALL))
            raise ConfigError("--precisions", got=repr(name), expected=expected, remedy="Put commas between.")
        if names.count(name) > 1:
            raise ConfigError("--precisions", got=f"{name} twice", expected="each once", remedy="Leave it out.")
    return ("fp32", *(name for name in TABLE_PRECISIONS if name in names and name != "fp32"))


@dataclass(frozen=True, slots=True)
class PrecisionRequest:
    """How missing bundles are exported.

    Attributes:
        mixed: budget of the mixed plan.
        data: returns demonstrations and what they are, or None for nothing to say; called when a bundle is missing.
    """

    precisions: tuple[str, ...]
    mixed: Budget
    data: Callable[[], tuple[Path, str | None]]


@dataclass(frozen=True, slots=True)
class CheckpointPolicies:
    """What a checkpoint is run as.

    Attributes:
        bundles: precision -> folder.
    """

    bundles: dict[str, Path]
    torch: tuple[TorchPolicy, ...]


def prepare_policies(
    checkpoint: Path,
    folder: Path,
    request: PrecisionRequest,
    *,
    shipped: Path | None = None,
    progress: StageProgress = lambda *_: None,
) -> CheckpointPolicies:
    """Export what is missing in `folder`; a bundle that misses its gates too, because its success is the question.

    Args:
        folder: holds one bundle for each precision.
        shipped: bundle that comes with the checkpoint; it stands for its precision if it was made of it.
        progress: called with (precision and stage, done, total).

    Raises:
        ArtifactError: the checkpoint is damaged, or `folder` holds bundles of another one.
        DatasetError: the demonstrations are damaged or empty.
    """
    sha256 = checkpoint_sha256(checkpoint)
    found: dict[str, Path] = {}
    if shipped is not None and (bundle := load_bundle(shipped)).manifest.source.get("checkpoint_sha256") == sha256:
        found[bundle.manifest.precision.requested] = shipped
    bundles: dict[str, Path] = {}
    for precision in request.precisions:
        if precision in _BY_TORCH:
            continue
        target = folder / (f"mixed-{request.mixed.metric}-{request.mixed.limit:g}" if precision == "mixed" else precision)
        if precision in found:
            target = found[precision]
        elif target.exists():
            _check_source(load_bundle(target), sha256)
        else:
            _export(checkpoint, target, precision, request, progress)
        bundles[precision] = target
    torch = tuple(TorchPolicy(checkpoint, *_BY_TORCH[name]) for name in request.precisions if name in _BY_TORCH)
    return CheckpointPolicies(bundles, torch)


def _export(checkpoint: Path, target: Path, precision: str, request: PrecisionRequest, progress: StageProgress) -> None:
    data, description = request.data()
    options = ExportOptions(
        precision=precision,
        data=data,
        data_description=description,
        budget=request.mixed if precision == "mixed" else None,
        force=True,
    )
    export_checkpoint(
        checkpoint, target, options, progress=lambda stage, done, total: progress(f"{precision}: {stage}", done, total)
    )


def _check_source(bundle: Bundle, sha256: str) -> None:
    made_from = bundle.manifest.source.get("checkpoint_sha256", "nothing known")
    if made_from != sha256:
        raise ArtifactError(
            f"bundle {bundle.root}",
            got=f"one of checkpoint {made_from[:12]}",
            expected=sha256[:12],
            remedy="Choose another --output, or remove it.",
        )


def labels_of(names: Sequence[str], policies: Sequence[CheckpointPolicies]) -> tuple[str, ...]:
    """Return what rows call the policies, bundles first: the precision, with a name where there are several checkpoints."""
    several = len(names) > 1
    bundles = [
        f"{name} {precision}" if several else precision
        for name, found in zip(names, policies, strict=True)
        for precision in found.bundles
    ]
    torch = [
        f"{name} {item.precision}" if several else item.precision
        for name, found in zip(names, policies, strict=True)
        for item in found.torch
    ]
    return (*bundles, *torch)
