"""`rfedge bench episodes`: how near a policy's actions are to the recorded ones, without a simulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfedge.benchmarks.success.episodes import EpisodesPlan, run_episodes
from rfedge.cli.options import AsJson, Output, plan_of, with_options

if TYPE_CHECKING:
    from rfedge.benchmarks.success.episodes import EpisodesReport
    from rfedge.records.statistics import Mean


@with_options(EpisodesPlan)
def episodes(
    plot: Annotated[Path | None, typer.Option(help="Draw predicted and recorded actions to this file.")] = None,
    output: Output = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.benchmarks.success.episodes import plot_episodes
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.reports import write_report
    from rfedge.io.plotting import check_matplotlib

    if plot is not None:
        check_matplotlib("--plot")
    plan = plan_of(EpisodesPlan, given)
    with stage_progress() as progress:
        report, traces = run_episodes(plan, on_step=progress)
    _print(report)
    if plot is not None:
        plot_episodes(report, traces, plot)
    write_report(report, output)


def _print(report: EpisodesReport) -> None:
    from rfedge.cli.show.tables import print_table

    def cell(mean: Mean, decimals: int) -> str:
        return f"{mean.value:.{decimals}f} [{mean.low:.{decimals}f}, {mean.high:.{decimals}f}]"

    scores = [report.mean_action, *(row.score for row in report.rows)]
    print_table(
        f"{len(report.episodes)} episodes, {report.num_steps} steps of {report.data}; 95 % intervals over episodes",
        ("", "mean action", *(f"{row.policy} {row.precision}, {row.execute_steps} of a chunk" for row in report.rows)),
        [
            ("action error (1.0 is the scale)", *(cell(score.action_error, 3) for score in scores)),
            ("position error, mm per step", *(cell(score.position_error_mm, 2) for score in scores)),
            ("rotation error, degrees per step", *(cell(score.rotation_error_deg, 2) for score in scores)),
            ("gripper agreement", *(cell(score.gripper_agreement, 3) for score in scores)),
            (f"gripper changes ({report.num_gripper_changes} recorded)", *(score.num_gripper_changes for score in scores)),
        ],
    )
