"""`rfedge bench looks`: how far PlayTable's pictures are from those of CALVIN's own simulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfedge.benchmarks.success import looks as library
from rfedge.cli.options import AsJson, plan_of, with_options

if TYPE_CHECKING:
    from rfedge.benchmarks.success.looks import LooksReport


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
    from rfedge.cli.show.reports import write_report

    plan = plan_of(library.LooksPlan, given)
    with stage_progress() as progress:
        report, sights = library.run_looks(plan, on_state=lambda done, total: progress("pictures", done, total))
    _print(report, as_json=as_json)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        library.draw_sheet(sights, output / "looks.png")
    write_report(report, None if output is None else output / "looks.json", as_json=as_json)
    if assert_levels is not None:
        library.assert_levels(report, assert_levels)  # last, so that the numbers behind a failed gate are on the screen


def _print(report: LooksReport, *, as_json: bool) -> None:
    from rfedge.cli.show.tables import print_table

    rows = [
        (looks, camera, f"{difference.mean:.1f}", f"{min(difference.states):.1f}", f"{max(difference.states):.1f}")
        for looks, cameras in report.differences.items()
        for camera, difference in cameras.items()
    ]
    title = (
        f"grey levels between PlayTable ({report.renderer}) and calvin_env ({report.real_renderer}), scene {report.scene}"
    )
    columns = ("looks", "camera", f"mean of {len(report.tasks)} states", "least", "most")
    print_table(title, columns, rows, to_stderr=as_json)
