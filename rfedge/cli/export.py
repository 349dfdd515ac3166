"""`rfedge export`: checkpoint -> bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder written by `rfedge train` or `rfedge import`, or a shipped policy.")
    ],
    output: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16, bf16, int8, int8-weight, int4-weight or mixed; with --stages two also one for each, such as "
            "vision=fp16,decoder=int8."
        ),
    ] = "fp32",
    stages: Annotated[
        str,
        typer.Option(
            help="Graphs of the backbone: one, or two (cameras to latents; latents and instruction to the feature), which "
            "can be built and loaded one at a time."
        ),
    ] = "one",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Demonstrations: calibration and proof; int8 and mixed need them. For a shipped policy scripted experts "
            "collect some, once, if none are named."
        ),
    ] = None,
    keep_float: Annotated[
        str,
        typer.Option(
            help="Blocks that stay fp32: beginnings of their names, separated by commas; "
            '"default" keeps the attention of queries to the cameras in fp32 for int8, in 8 bits for int4-weight; '
            '"none" quantizes everything.'
        ),
    ] = "default",
    ranges: Annotated[str, typer.Option(help="Ranges of int8 activations: min-max, percentile or mse.")] = "min-max",
    smooth_quant: Annotated[
        str, typer.Option(help="Strength of SmoothQuant from 0 to 1, search (one for each MatMul) or off.")
    ] = "search",
    budget: Annotated[
        str | None,
        typer.Option(
            help="How far mixed may move the action from fp32, such as action_error=0.01 (the largest; 1.0 is 20 mm or 0.05 "
            "rad), action_p99_error or action_mean_error. What was measured is kept beside OUTPUT in OUTPUT.search."
        ),
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Picture file: what int8 costs and saves in each block.")] = None,
    instructions: Annotated[
        str | None,
        typer.Option(
            help="The only sentences that the bundle shall know, instead of tokenizer and token table: a text file with one "
            'a line, a .json list, or "data" for those of the demonstrations.'
        ),
    ] = None,
    head_precision: Annotated[
        str, typer.Option(help="int8 adds a head with int8 weights for CPUs, where reading them is what a head costs.")
    ] = "fp32",
    calibration_frames: Annotated[int, typer.Option(min=1, help="Frames that set int8 ranges and round weights.")] = 128,
    parity_steps: Annotated[int, typer.Option(min=1, help="Steps of the proof rollout with carried state.")] = 64,
    seed: Annotated[int, typer.Option(help="Draws calibration and proof frames.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write the bundle although it misses a threshold; its manifest says so.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every input and write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON document.")] = False,
) -> None:
    import sys
    from dataclasses import replace

    from rfedge.cli.demos.expert_demonstrations import expert_demonstrations
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.stopped import kept_when_stopped
    from rfedge.cli.show.tables import print_manifest
    from rfedge.export.int8.options import Int8Options, parse_smooth_quant
    from rfedge.export.int8.ranges import check_range_method
    from rfedge.export.mixed.budget import parse_budget
    from rfedge.export.mixed.chart import can_draw, default_chart
    from rfedge.export.pipeline import ExportOptions, check_export, export_checkpoint
    from rfedge.policies import find_checkpoint, is_shipped

    named = tuple(name.strip() for name in keep_float.split(",") if name.strip())
    options = ExportOptions(
        precision=precision,
        stages=stages,
        data=data,
        keep_float=None if named == ("default",) else () if named == ("none",) else named,
        int8=Int8Options(ranges=check_range_method(ranges), smooth_quant=parse_smooth_quant(smooth_quant)),
        budget=None if budget is None else parse_budget(budget),
        chart=default_chart(output) if precision == "mixed" and chart is None and can_draw() else chart,
        instructions=instructions,
        head_precision=head_precision,
        num_calibration_frames=calibration_frames,
        num_parity_steps=parity_steps,
        seed=seed,
        overwrite=overwrite,
        force=force,
    )
    if precision == "mixed" and chart is None and not can_draw():
        print("no chart: matplotlib is not installed (pip install 'rfedge[plots]')", file=sys.stderr)
    folder = find_checkpoint(checkpoint)
    collects = data is None and is_shipped(checkpoint)
    if dry_run or collects:  # what is wrong is said before demonstrations are collected
        check_export(folder, output, options, data_follows=collects)
    if dry_run:
        print(f"ready: {checkpoint} -> {output} in {precision}; nothing was written")
        return
    kept = f"nothing was written to {output}" + (
        f"; what was measured is in {output}.search, the same command goes on" if precision == "mixed" else ""
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
