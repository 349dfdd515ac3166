"""`rfedge bench env`: what a control step, its pictures and a reset of an environment cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rfedge.benchmarks.latency import environment_speed as library
from rfedge.cli.options import AsJson, Output, plan_of, with_options


@with_options(library.EnvironmentSpeedPlan)
def env(
    assert_step_ms: Annotated[
        float | None, typer.Option(help="Fail unless the median step with both cameras takes less.")
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.progress import round_progress
    from rfedge.cli.show.tables import show_report

    plan = plan_of(library.EnvironmentSpeedPlan, given)
    with round_progress() as on_round:
        report = library.run_environment_speed(plan, on_round=on_round)
    show_report(report, output)
    if assert_step_ms is not None:
        library.assert_step_ms(report, assert_step_ms)  # last, so that the numbers behind a failed gate are on the screen
