"""`rfedge bench server`: `rfedge serve` under load."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rfedge.benchmarks.latency import server as library
from rfedge.cli.options import AsJson, Output, plan_of, with_options


@with_options(library.ServerPlan)
def server(
    assert_sound: Annotated[
        bool, typer.Option("--assert-sound", help="Fail if states mix, an answer is late or the server ends badly.")
    ] = False,
    assert_p99_ms: Annotated[float | None, typer.Option(help="Fail unless the round trips' p99 is at most this.")] = None,
    output: Output = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.tables import show_report

    report = library.run_server(plan_of(library.ServerPlan, given))
    show_report(report, output)
    # Last, so that the numbers behind a failed gate are on the screen.
    if assert_sound:
        library.assert_sound(report)
    if assert_p99_ms is not None:
        library.assert_p99_ms(report, assert_p99_ms)
