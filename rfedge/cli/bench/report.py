"""`rfedge bench report`: the records of other benchmarks joined into one page and one Markdown file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfedge.cli.options import AsJson


def report(
    sources: Annotated[list[Path], typer.Argument(help="JSON records, and folders in which they lie at any depth.")],
    output: Annotated[Path, typer.Option(help="The page: one HTML file that loads nothing.")] = Path("report.html"),
    markdown: Annotated[Path | None, typer.Option(help="Write the same without plots here, as Markdown.")] = None,
    gif: Annotated[list[Path] | None, typer.Option(help="GIF, PNG or JPEG to show, or a folder of GIFs; repeat it.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "rfedge: measured",
    as_json: AsJson = False,
) -> None:
    from rfedge.benchmarks.report.build import build_report
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import print_json, print_table, say

    with stage_progress() as progress:
        built = build_report(sources, gif or (), title, progress=progress)
    built.write(output, markdown)
    collection = built.collection
    print_table("records", ("record", "format"), [(one.name, one.form) for one in collection.found])
    if collection.left_out:
        print_table("left out", ("file", "why"), collection.left_out)
    written = ", ".join(str(path) for path in (output, markdown) if path is not None)
    size = f"{len(built.html.encode()) / 1e6:.2f} MB page, {len(built.rows)} rows"
    say(built.sentence, f"{written}: {size}")
    document = {
        "output": output,
        "markdown": markdown,
        "sentence": built.sentence,
        "records": [{"name": one.name, "format": one.form} for one in collection.found],
        "left_out": [{"name": name, "reason": reason} for name, reason in collection.left_out],
        "num_rows": len(built.rows),
        "num_pictures": built.num_pictures,
        "missing": built.missing,
    }
    print_json(document)
