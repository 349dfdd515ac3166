"""`rfedge bench success --precisions`: a checkpoint in every precision, success, latency, size and memory in one row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def prepare_table(
    checkpoints: Sequence[Path], precisions: str, *, output: Path | None, data: Path | None, mixed_budget: str
) -> dict[str, Any]:
    """Export what is missing beside `output`, behind progress bars, and return the rows as fields of a `SuccessPlan`."""
    from rfedge.benchmarks.success.precision_bundles import parse_table_precisions, prepare_policies, rows_of
    from rfedge.cli.demos.expert_demonstrations import expert_demonstrations
    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.errors import ConfigError
    from rfedge.export.mixed.plan import parse_budget
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
    folder = output.with_name(output.name + ".bundles")
    found = {}
    kept = f"finished bundles are in {folder}, the same command goes on"
    with kept_when_stopped(kept), stage_progress() as progress:

        def demonstrations() -> tuple[Path, str | None]:
            if data is not None:
                return data, None
            collected = expert_demonstrations(progress)
            return collected.folder, collected.description

        for path in checkpoints:
            shipped = find_bundle(path) if is_shipped(path) else None
            # Training runs all call theirs `checkpoint`.
            name = path.parent.name if path.name == "checkpoint" else path.name
            place = folder / name if len(checkpoints) > 1 else folder
            found[name] = prepare_policies(
                find_checkpoint(path), place, names, budget, demonstrations, shipped=shipped, progress=progress
            )
    return rows_of(found)
