"""`rfedge import`: original RoboFlamingo and OpenFlamingo files -> checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfedge.cli.options import AsJson, plan_of, with_options
from rfedge.records.import_options import ImportOptions

if TYPE_CHECKING:
    from rfedge.model.original.import_plan import ImportPlan

_LISTED = 10


@with_options(ImportOptions)
def import_weights(
    output: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every name and shape and write nothing.")] = False,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.cli.show.tables import print_json, warn
    from rfedge.model.original.import_plan import plan_import
    from rfedge.model.original.importing import check_output, import_document, write_import

    plan = plan_import(plan_of(ImportOptions, given))
    document: dict[str, Any] = {"format": "rfedge-import", "output": str(output), "written": False, **import_document(plan)}
    if plan.weights.mismatched or plan.missing:
        print_json(document)
        plan.check()
    if plan.warnings:
        warn(f"warning: {'; '.join(plan.warnings)}")
    check_output(plan, output, overwrite=overwrite)
    if not dry_run:
        with kept_when_stopped(f"nothing was written to {output}"), stage_progress() as progress:
            document["origin"] = write_import(plan, output, overwrite=overwrite, progress=progress)
        document["written"] = True
    _print(plan, output, dry_run=dry_run)
    print_json(document)


def _print(plan: ImportPlan, output: Path, *, dry_run: bool) -> None:
    from rfedge.cli.show.tables import print_table, say

    weights = plan.weights
    print_table(f"{plan.config.name}: tensors taken", ("file", "tensors"), weights.taken.items())
    lines = [f"assumed: {sentence}" for sentence in plan.assumed]
    lines += [f"left over, nobody knows it: {name}" for name in weights.left_over[:_LISTED]]
    if len(weights.left_over) > _LISTED:
        lines.append(f"left over: {len(weights.left_over) - _LISTED} more, see --json")
    size = f"{len(weights.shapes)} tensors, {plan.size_bytes / 1e9:.2f} GB in {plan.options.dtype}"
    say(*lines, f"{output}: {size}; {'nothing was written' if dry_run else 'written'}")
