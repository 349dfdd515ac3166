"""`rfedge bench episodes`: how near a policy's actions are to the recorded ones, without a simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rfedge.benchmarks.success.episodes import EpisodesPlan, plot_episodes, run_episodes
from rfedge.cli.options import AsJson, Output, plan_of, with_options


@with_options(EpisodesPlan)
def episodes(
    plot: Annotated[Path | None, typer.Option(help="Draw predicted and recorded actions to this file.")] = None,
    output: Output = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import show_report
    from rfedge.io.plotting import check_matplotlib

    if plot is not None:
        check_matplotlib("--plot")
    plan = plan_of(EpisodesPlan, given)
    with stage_progress() as progress:
        report, traces = run_episodes(plan, on_step=progress)
    show_report(report, output)
    if plot is not None:
        plot_episodes(report, traces, plot)
