"""`rfedge export`: checkpoint -> bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rfedge.cli.options import AsJson, plan_of, with_options
from rfedge.export.options import ExportOptions


@with_options(ExportOptions)
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder written by `rfedge train` or `rfedge import`, or a shipped policy.")
    ],
    output: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every input and write nothing.")] = False,
    json: AsJson = False,
    **given: Any,
) -> None:
    from dataclasses import replace
    from json import loads

    from rfedge.cli.demos.expert_demonstrations import expert_demonstrations
    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.cli.show.tables import print_manifest, say, say_ready, show_record, warn
    from rfedge.export.mixed.record import default_chart
    from rfedge.export.pipeline import check_export, export_checkpoint
    from rfedge.io.plotting import has_matplotlib
    from rfedge.policies import find_checkpoint, is_shipped

    options = plan_of(ExportOptions, given)
    is_mixed = options.precision == "mixed"
    if is_mixed and options.chart is None:
        if has_matplotlib():
            options = replace(options, chart=default_chart(output))
        else:
            warn("no chart: matplotlib is not installed (pip install 'rfedge[plots]')")
    folder = find_checkpoint(checkpoint)
    collects = options.data is None and is_shipped(checkpoint)
    if dry_run or collects:  # what is wrong is said before demonstrations are collected
        check_export(folder, output, options, data_follows=collects)
    if dry_run:
        say_ready(f"{checkpoint} in {options.precision}", output)
        return
    kept = f"nothing was written to {output}"
    kept += f"; what was measured is in {output}.search, the same command goes on" if is_mixed else ""
    with kept_when_stopped(kept), stage_progress() as progress:
        if collects:
            demonstrations = expert_demonstrations(progress)
            options = replace(options, data=demonstrations.folder, data_description=demonstrations.description)
        bundle = export_checkpoint(folder, output, options, progress=progress)
    if bundle.manifest.precision.requested == "mixed":
        search = loads((bundle.root / "mixed.json").read_bytes())
        show_record("rfedge-mixed", search)
        chart = "" if options.chart is None else f"chart in {options.chart}; "
        kept = f"{output}.search holds what was measured, the same export with another --budget goes on from it"
        say(chart + kept)
    print_manifest(bundle)
