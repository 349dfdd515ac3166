"""`rfedge bench experts`: how often and how fast the scripted experts do their tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.runtimes.control.limits import MAX_STEPS

if TYPE_CHECKING:
    from rfedge.benchmarks.success.expert_success import ExpertSuccessReport

__all__ = ["experts"]


def experts(
    env: Annotated[str, typer.Option(help="Environment: playtable or calvin.")] = "playtable",
    scene: Annotated[str, typer.Option(help="Table layout, A to D.")] = "D",
    tasks: Annotated[str, typer.Option(help="`all`, or names with commas between.")] = "all",
    episodes: Annotated[int, typer.Option(min=1, help="Random starts per task.")] = 50,
    max_steps: Annotated[int, typer.Option(min=1, help="Control steps per start.")] = MAX_STEPS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first start.")] = 0,
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="Blocks start anywhere in CALVIN's area, not just where one window is enough.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
    assert_success: Annotated[
        bool, typer.Option("--assert-success", help="Fail unless 30 tasks reach 95 % and all of them 80 %.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    from rfedge.benchmarks.success import expert_success as library
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.reports import write_report
    from rfedge.envs.experts import EXPERT_TASKS

    names = EXPERT_TASKS if tasks == "all" else tuple(name.strip() for name in tasks.split(",") if name.strip())
    plan = library.ExpertSuccessPlan(
        env=env, scene=scene, tasks=names, episodes=episodes, limit_steps=max_steps, seed=seed, anywhere=anywhere
    )
    with stage_progress() as progress:
        report = library.run_expert_success(
            plan, workers=workers, on_task=lambda done, total: progress("tasks", done, total)
        )
    _print(report, as_json=as_json)
    write_report(report, output, as_json=as_json)
    if assert_success:
        library.assert_success(report)  # last, so that the numbers behind a failed gate are on the screen


def _print(report: ExpertSuccessReport, *, as_json: bool) -> None:
    import sys

    from rfedge.cli.show.tables import print_table

    rows = []
    for task, score in report.tasks.items():
        steps = "" if score.median_steps is None else f"{score.median_steps:.0f}"
        failed = " ".join(str(seed) for seed in score.failed_seeds)
        rows.append((task, f"{score.success.successes}/{score.success.n}", score.within_window, steps, failed))
    columns = ("task", "solved", "within 64", "median steps", "failed seeds")
    print_table(f"experts in {report.environment}, scene {report.scene}", columns, rows, to_stderr=as_json)
    worst = min(score.success.value for score in report.tasks.values())
    print(
        f"{report.num_nearly_always} of {len(report.tasks)} tasks at 95 % or more, the least at {worst:.0%}; "
        f"{report.episodes} starts per task, at most {report.limit_steps} steps; {report.wall_seconds:.1f} s",
        file=sys.stderr if as_json else sys.stdout,
    )
