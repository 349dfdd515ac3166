"""`rfedge bench success --precisions`: a checkpoint in every precision, success, latency, size and memory in one row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rfedge.runtimes.rollout.policy_source import TorchPolicy

_SUFFIX = ".bundles"


class PreparedTable(NamedTuple):
    """The policies of a table, bundles first, and what its rows call them."""

    bundles: tuple[Path, ...]
    torch: tuple[TorchPolicy, ...]
    labels: tuple[str, ...]


def prepare_table(
    checkpoints: Sequence[Path], precisions: str, *, output: Path | None, data: Path | None, mixed_budget: str
) -> PreparedTable:
    """Export what is missing beside `output`, behind progress bars.

    Raises:
        ConfigError: no output, an unknown precision, or a checkpoint without demonstrations to export it with.
        ArtifactError: a checkpoint or a bundle of an earlier call is damaged, or of another checkpoint.
        BackendUnavailableError: the simulator, PyTorch or bitsandbytes is not on this machine.
    """
    from rfedge.benchmarks.success.precision_bundles import (
        PrecisionRequest,
        labels_of,
        parse_table_precisions,
        prepare_policies,
    )
    from rfedge.cli.demos.expert_demonstrations import expert_demonstrations
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.stopped import kept_when_stopped
    from rfedge.errors import ConfigError
    from rfedge.export.mixed.budget import parse_budget
    from rfedge.model.bitsandbytes_weights import WEIGHT_FORMATS, import_bitsandbytes
    from rfedge.policies import find_bundle, find_checkpoint, is_shipped

    if output is None:
        raise ConfigError(
            "--precisions", got="no --output", expected="a folder", remedy="Pass --output; bundles go beside it."
        )
    names, budget = parse_table_precisions(precisions), parse_budget(mixed_budget)
    if any(name in WEIGHT_FORMATS for name in names):
        import_bitsandbytes()  # what is missing is said before hours of rollouts
    for path in checkpoints:
        if data is None and not is_shipped(path):
            raise ConfigError(
                f"checkpoint {path}", got="no --data", expected="demonstrations to export with", remedy="Pass --data DIR."
            )
    found = []
    folder = output.with_name(output.name + _SUFFIX)
    kept = f"finished bundles are in {folder}, the same command goes on"
    with kept_when_stopped(kept), stage_progress() as progress:

        def demonstrations() -> tuple[Path, str | None]:
            if data is not None:
                return data, None
            collected = expert_demonstrations(progress)
            return collected.folder, collected.description

        for path in checkpoints:
            request = PrecisionRequest(names, budget, demonstrations)
            shipped = find_bundle(path) if is_shipped(path) else None
            place = folder / _name(path) if len(checkpoints) > 1 else folder
            found.append(prepare_policies(find_checkpoint(path), place, request, shipped=shipped, progress=progress))
    return PreparedTable(
        tuple(bundle for policies in found for bundle in policies.bundles.values()),
        tuple(item for policies in found for item in policies.torch),
        labels_of([_name(path) for path in checkpoints], found),
    )


def _name(checkpoint: Path) -> str:
    """Return what tells checkpoints apart: training runs all call theirs `checkpoint`."""
    return checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name
