"""`rfedge export`: checkpoint -> bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder written by `rfedge train`.")],
    output: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    precision: Annotated[str, typer.Option(help="fp32 or int8.")] = "fp32",
    data: Annotated[Path | None, typer.Option(help="Demonstrations: calibration for int8, and the proof's inputs.")] = None,
    keep_float: Annotated[
        str,
        typer.Option(
            help="Blocks that stay fp32 in an int8 export: beginnings of their names, separated by commas; "
            '"default" is the attention of queries to the cameras, "none" quantizes everything.'
        ),
    ] = "default",
    ranges: Annotated[str, typer.Option(help="Ranges of int8 activations: min-max, percentile or mse.")] = "min-max",
    smooth_quant: Annotated[
        str, typer.Option(help="Strength of SmoothQuant from 0 to 1, search (one for each product) or off.")
    ] = "0.5",
    calibration_frames: Annotated[int, typer.Option(min=1, help="Frames that set the int8 ranges.")] = 128,
    parity_steps: Annotated[int, typer.Option(min=1, help="Steps of the proof rollout with carried state.")] = 64,
    seed: Annotated[int, typer.Option(help="Draws calibration and proof frames.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every input and write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON document.")] = False,
) -> None:
    """Turn a checkpoint into a bundle that runs without PyTorch, and prove that it still acts the same."""
    from rfedge.cli.progress import stage_progress
    from rfedge.cli.tables import print_manifest
    from rfedge.export.int8.options import Int8Options, parse_smooth_quant
    from rfedge.export.int8.ranges import check_range_method
    from rfedge.export.pipeline import ExportOptions, check_export, export_checkpoint

    named = tuple(name.strip() for name in keep_float.split(",") if name.strip())
    options = ExportOptions(
        precision=precision,
        data=data,
        keep_float=None if named == ("default",) else () if named == ("none",) else named,
        int8=Int8Options(ranges=check_range_method(ranges), smooth_quant=parse_smooth_quant(smooth_quant)),
        num_calibration_frames=calibration_frames,
        num_parity_steps=parity_steps,
        seed=seed,
        overwrite=overwrite,
    )
    if dry_run:
        check_export(checkpoint, output, options)
        print(f"ready: {checkpoint} -> {output} in {precision}; nothing was written")
        return
    with stage_progress() as progress:
        bundle = export_checkpoint(checkpoint, output, options, progress=progress)
    print_manifest(bundle, as_json=json)
