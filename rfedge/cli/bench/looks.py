"""`rfedge bench looks`: how far PlayTable's pictures are from those of CALVIN's own simulator."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rfedge.benchmarks.success import looks as library
from rfedge.cli.options import AsJson, plan_of, with_options


@with_options(library.LooksPlan)
def looks(
    assert_levels: Annotated[
        float | None, typer.Option(help="Fail unless both cameras differ by at most this many grey levels.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for looks.png, the pictures side by side, and looks.json.")
    ] = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import show_report

    plan = plan_of(library.LooksPlan, given)
    with stage_progress() as progress:
        report, states = library.run_looks(plan, on_state=partial(progress, "pictures"))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        library.save_sheet(states, output / "looks.png")
    show_report(report, None if output is None else output / "looks.json")
    if assert_levels is not None:
        library.assert_levels(report, assert_levels)  # last, so that the numbers behind a failed gate are on the screen
