"""`rfedge demos merge`: several datasets -> one, to train on all of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rfedge.cli.options import AsJson


def merge(
    datasets: Annotated[list[Path], typer.Argument(help="Two or more datasets in the CALVIN format.")],
    output: Annotated[Path, typer.Option(help="New folder for the merged dataset.")],
    as_json: AsJson = False,
) -> None:
    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.cli.show.tables import print_json, print_table
    from rfedge.data.merging import merge_datasets

    with kept_when_stopped(f"nothing was written to {output}"), stage_progress() as progress:
        result = merge_datasets(datasets, output, on_progress=partial(progress, "frames"))
    rows: list[tuple[object, ...]] = [
        (row.folder, row.scene or "", row.num_segments, row.num_frames, row.shift) for row in result.sources
    ]
    rows.append(("all", "", result.num_segments, result.num_frames, ""))
    print_table(str(result.folder), ("dataset", "scene", "segments", "frames", "shift"), rows)
    print_json(result)
