"""The policies of a table of precisions: every bundle that a checkpoint has not yet is exported, once.

A precision without kernels in ONNX Runtime on CPUs is run by PyTorch. Bundles are kept, so that a killed measurement goes
on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rfedge.bundle.artifact import load_bundle
from rfedge.errors import ArtifactError, ConfigError, one_of
from rfedge.export.mixed.plan import Budget
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import export_checkpoint
from rfedge.jobs.progress import StageProgress
from rfedge.model import checkpoint_sha256
from rfedge.runtimes.rollout.policy_source import TorchPolicy

_BY_TORCH: Final = {"bf16": ("bfloat16", "as-is"), "nf4": ("float32", "nf4"), "llm-int8": ("float32", "llm-int8")}
# fp32 comes first: the others are compared with it.
TABLE_PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "int8-weight", "int4-weight", "mixed", "nf4", "llm-int8")
_ALL: Final = "all"


def parse_table_precisions(text: str) -> tuple[str, ...]:
    """Read "all" or "fp32,int8": fp32 is always among them, and first. Raises ConfigError for any other text."""
    if text.strip() == _ALL:
        return TABLE_PRECISIONS
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        one_of((*TABLE_PRECISIONS, _ALL), name, "--precisions", remedy="Put commas between.")
        if names.count(name) > 1:
            raise ConfigError("--precisions", got=f"{name} twice", expected="each once", remedy="Leave it out.")
    return ("fp32", *(name for name in TABLE_PRECISIONS if name in names and name != "fp32"))


def prepare_policies(
    checkpoint: Path,
    folder: Path,
    precisions: Sequence[str],
    mixed: Budget,
    data: Callable[[], tuple[Path, str | None]],
    *,
    shipped: Path | None = None,
    progress: StageProgress = lambda *_: None,
) -> dict[str, Path | TorchPolicy]:
    """Export what is missing in `folder`; a bundle that misses its gates too, because its success is the question.

    `data` returns demonstrations and what they are; it is called when a bundle is missing. The `shipped` bundle stands for
    its precision if it was made of this checkpoint. Returns precision -> bundle, or the checkpoint in PyTorch.

    Raises:
        ArtifactError: the checkpoint is damaged, or `folder` holds bundles of another one.
        DatasetError: the demonstrations are damaged or empty.
    """
    sha256 = checkpoint_sha256(checkpoint)
    found: dict[str, Path | TorchPolicy] = {}
    if shipped is not None and (bundle := load_bundle(shipped)).manifest.source.get("checkpoint_sha256") == sha256:
        found[bundle.manifest.precision.requested] = shipped
    for precision in precisions:
        target = folder / (f"mixed-{mixed.metric}-{mixed.limit:g}" if precision == "mixed" else precision)
        if precision in _BY_TORCH:
            found[precision] = TorchPolicy(checkpoint, *_BY_TORCH[precision])
        elif precision not in found:
            found[precision] = target
            if target.exists():
                made_from = load_bundle(target).manifest.source.get("checkpoint_sha256", "nothing known")
                if made_from != sha256:
                    got, remedy = f"one of checkpoint {made_from[:12]}", "Choose another --output, or remove it."
                    raise ArtifactError(f"bundle {target}", got=got, expected=sha256[:12], remedy=remedy)
                continue
            demonstrations, description = data()
            options = ExportOptions(
                precision=precision,
                data=demonstrations,
                data_description=description,
                budget=mixed if precision == "mixed" else None,
                force=True,
            )
            export_checkpoint(checkpoint, target, options, progress=_named(precision, progress))
    return {precision: found[precision] for precision in precisions}


def _named(precision: str, progress: StageProgress) -> StageProgress:
    return lambda stage, done, total: progress(f"{precision}: {stage}", done, total)


def rows_of(found: Mapping[str, Mapping[str, Path | TorchPolicy]]) -> dict[str, Any]:
    """Return the fields of a `SuccessPlan` for name of a checkpoint -> its policies, which are paired in the same loop."""
    labelled = [
        (f"{name} {precision}" if len(found) > 1 else precision, policy)
        for name, policies in found.items()
        for precision, policy in policies.items()
    ]
    labelled.sort(key=lambda row: isinstance(row[1], TorchPolicy))  # bundles come first
    return {
        "bundles": tuple(policy for _, policy in labelled if isinstance(policy, Path)),
        "torch": tuple(policy for _, policy in labelled if isinstance(policy, TorchPolicy)),
        "labels": tuple(label for label, _ in labelled),
        "pairing": "same-loop",
    }
