"""`rfedge export`: checkpoint -> bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rfedge.cli.options import plan_of, with_options
from rfedge.export.options import ExportOptions


@with_options(ExportOptions)
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder written by `rfedge train` or `rfedge import`, or a shipped policy.")
    ],
    output: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every input and write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON document.")] = False,
    **given: Any,
) -> None:
    import sys
    from dataclasses import replace

    from rfedge.cli.demos.expert_demonstrations import expert_demonstrations
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.stopped import kept_when_stopped
    from rfedge.cli.show.tables import print_manifest
    from rfedge.export.mixed.chart import default_chart
    from rfedge.export.pipeline import check_export, export_checkpoint
    from rfedge.io.plotting import has_matplotlib
    from rfedge.policies import find_checkpoint, is_shipped

    options = plan_of(ExportOptions, given)
    is_mixed = options.precision == "mixed"
    if is_mixed and options.chart is None:
        if has_matplotlib():
            options = replace(options, chart=default_chart(output))
        else:
            print("no chart: matplotlib is not installed (pip install 'rfedge[plots]')", file=sys.stderr)
    folder = find_checkpoint(checkpoint)
    collects = options.data is None and is_shipped(checkpoint)
    if dry_run or collects:  # what is wrong is said before demonstrations are collected
        check_export(folder, output, options, data_follows=collects)
    if dry_run:
        print(f"ready: {checkpoint} -> {output} in {options.precision}; nothing was written")
        return
    kept = f"nothing was written to {output}" + (
        f"; what was measured is in {output}.search, the same command goes on" if is_mixed else ""
    )
    with kept_when_stopped(kept), stage_progress() as progress:
        if collects:
            demonstrations = expert_demonstrations(progress)
            options = replace(options, data=demonstrations.folder, data_description=demonstrations.description)
        bundle = export_checkpoint(folder, output, options, progress=progress)
    if bundle.manifest.precision.requested == "mixed":
        _print_evidence(bundle.root / "mixed.json", options.chart, f"{output}.search", to_stderr=json)
    print_manifest(bundle, as_json=json)


def _print_evidence(path: Path, chart: Path | None, search: str, *, to_stderr: bool) -> None:
    import sys

    from rfedge.cli.show.tables import print_table
    from rfedge.export.mixed.record import SearchRecord

    record = SearchRecord.model_validate_json(path.read_bytes())
    print_table(
        f"int8 in one block alone, over {record.num_steps} steps with carried state",
        ("block", "plan", "ms saved", "mean error", "largest error", "why"),
        [
            (
                name,
                block.precision,
                f"{block.saved_ms:+.3f}",
                f"{block.metrics['action_mean_error']:.2g}",
                f"{block.metrics['action_max_error']:.2g}",
                block.reason,
            )
            for name, block in record.blocks.items()
        ],
        to_stderr=to_stderr,
    )
    ratios = record.time_ratios
    print(
        f"plan: {record.budget_metric} {record.metrics[record.budget_metric]:.4g} of {record.budget:g} "
        f"(int8 {record.int8_metrics[record.budget_metric]:.4g}, int8 in every block "
        f"{record.uniform_metrics[record.budget_metric]:.4g}); time {ratios['mixed/int8']:.2f} of int8, "
        f"{ratios['mixed/uniform']:.2f} of int8 in every block, {ratios['mixed/fp32']:.2f} of fp32; "
        f"{record.num_measured} errors measured, {record.num_reused} found from before"
        + (f"; chart in {chart}" if chart is not None else ""),
        file=sys.stderr if to_stderr else sys.stdout,
    )
    print(
        f"{search} holds what was measured: the same export with another --budget goes on from it; it may be deleted",
        file=sys.stderr if to_stderr else sys.stdout,
    )
