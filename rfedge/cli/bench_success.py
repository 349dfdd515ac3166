"""`rfedge bench success`: whether compiled policies still do CALVIN's chains and tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from rfedge.cli.success_options import (
    AsJson,
    Backend,
    Bundles,
    Enriched,
    Env,
    Labels,
    LeastLength,
    LeastShare,
    MaxSteps,
    Mode,
    Num,
    Output,
    Provider,
    Ray,
    Scenes,
    Seed,
    SingleTasks,
    Tasks,
    Threads,
    TrainedOn,
    Workers,
)

__all__ = ["success"]


def success(
    bundles: Bundles,
    labels: Labels = None,
    trained_on: TrainedOn = None,
    execute_steps: Annotated[str, typer.Option(help="Control steps per policy call, with commas between.")] = "1",
    mode: Mode = None,
    num: Num = 200,
    single_tasks: SingleTasks = 0,
    tasks: Tasks = "all",
    enriched: Enriched = False,
    env: Env = "playtable",
    scenes: Scenes = None,
    max_steps: MaxSteps = 360,
    seed: Seed = 0,
    workers: Workers = 1,
    ray: Ray = None,
    threads: Threads = 1,
    backend: Backend = "onnxruntime",
    provider: Provider = "cpu",
    assert_average_length: LeastLength = None,
    assert_share: LeastShare = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Run bundles on the same chains and tasks, and say how much of the first one's success the others keep."""
    from rfedge.benchmarks import success_report
    from rfedge.benchmarks.success import run_success
    from rfedge.cli.progress import stage_progress
    from rfedge.cli.reports import write_report
    from rfedge.cli.success_options import draw_chains, make_plan, open_workers
    from rfedge.cli.success_tables import print_success

    plan = make_plan(
        bundles,
        labels,
        trained_on,
        execute_steps=execute_steps,
        mode=mode,
        enriched=enriched,
        env=env,
        scenes=scenes,
        single_tasks=single_tasks,
        tasks=tasks,
        max_steps=max_steps,
        seed=seed,
        threads=threads,
        backend=backend,
        provider=provider,
    )
    with open_workers(ray, workers) as (runner, executor), stage_progress() as progress:
        report = run_success(
            plan,
            draw_chains(num, progress),
            output,
            workers=workers,
            runner=runner,
            executor=executor,
            on_progress=lambda done, total: progress("rollouts", done, total),
        )
    print_success(report, to_stderr=as_json)
    write_report(report, as_json=as_json)
    if assert_average_length is not None:  # last, so that the numbers behind a failed gate are on the screen
        success_report.assert_average_length(report, assert_average_length)
    if assert_share is not None:
        success_report.assert_share(report, assert_share)
