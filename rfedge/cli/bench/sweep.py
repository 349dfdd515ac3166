"""`rfedge bench sweep`: what more steps per policy call cost in success and save in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.bench.success_options import (
    AsJson,
    Backend,
    Bundles,
    Enriched,
    Ensembles,
    Env,
    Kinds,
    Labels,
    LeastLength,
    LeastShare,
    LooksChoice,
    MaxSteps,
    Num,
    Output,
    Provider,
    Ray,
    RendererChoice,
    Scenes,
    Seed,
    SingleTasks,
    Tasks,
    Threads,
    TrainedOn,
    Workers,
)
from rfedge.runtimes.control.limits import MAX_STEPS

if TYPE_CHECKING:
    from rfedge.benchmarks.success.sweep_report import SweepReport

__all__ = ["sweep"]


def sweep(
    bundles: Bundles,
    labels: Labels = None,
    trained_on: TrainedOn = None,
    execute_steps: Annotated[
        str, typer.Option(help="Control steps per policy call, with commas between; those beyond a chunk are listed.")
    ] = "1,2,4,8",
    ensemble: Ensembles = "none",
    kinds: Kinds = None,
    num: Num = 200,
    single_tasks: SingleTasks = 0,
    tasks: Tasks = "all",
    enriched: Enriched = False,
    env: Env = "playtable",
    scenes: Scenes = None,
    looks: LooksChoice = None,
    renderer: RendererChoice = None,
    max_steps: MaxSteps = MAX_STEPS,
    seed: Seed = 0,
    workers: Workers = 1,
    ray: Ray = None,
    threads: Threads = 1,
    latency_threads: Annotated[
        int, typer.Option(min=0, help="Threads while latency is measured alone; 0 is the backend's own choice.")
    ] = 0,
    iterations: Annotated[int, typer.Option(min=1, help="Timed calls per bundle.")] = 200,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed calls per bundle.")] = 20,
    settle_ms: Annotated[float, typer.Option(help="Untimed pause before each timed call.")] = 20.0,
    backend: Backend = "onnxruntime",
    provider: Provider = "cpu",
    assert_average_length: LeastLength = None,
    assert_share: LeastShare = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the picture to this file; with --output it is also sweep.png there.")
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    import dataclasses

    from rfedge.benchmarks.success.sweep import PLOT_FILE, SweepPlan, finish_sweep
    from rfedge.benchmarks.success.sweep_plot import can_draw, check_can_draw, draw_sweep
    from rfedge.cli.bench.success_options import check_gates, make_plan, measure
    from rfedge.cli.bench.success_tables import print_success
    from rfedge.cli.show.progress import round_progress
    from rfedge.cli.show.reports import write_report

    if plot is not None:
        check_can_draw()
    success_plan = make_plan(
        bundles,
        labels,
        trained_on,
        execute_steps=execute_steps,
        ensemble=ensemble,
        mode=None,
        kinds=kinds,
        enriched=enriched,
        env=env,
        scenes=scenes,
        looks=looks,
        renderer=renderer,
        single_tasks=single_tasks,
        tasks=tasks,
        max_steps=max_steps,
        seed=seed,
        threads=threads,
        backend=backend,
        provider=provider,
    )
    plan = SweepPlan(
        success_plan,
        iterations=iterations,
        warmup=warmup,
        settle_ms=settle_ms,
        latency_settings=dataclasses.replace(success_plan.settings, threads=latency_threads),
    )
    success = measure(plan.success, num=num, output=output, workers=workers, ray=ray)
    with round_progress() as on_round:  # with nothing beside it
        report = finish_sweep(plan, success, output, on_round=on_round)
    print_success(success, to_stderr=as_json)
    _print(report, to_stderr=as_json)
    for picture in (plot, None if output is None or not can_draw() else output / PLOT_FILE):
        if picture is not None:
            draw_sweep(report, picture)
    write_report(report, as_json=as_json)
    check_gates(success, assert_average_length, assert_share)


def _print(report: SweepReport, *, to_stderr: bool) -> None:
    from rfedge.cli.show.tables import print_table

    rows = []
    for row, joined in zip(report.success.rows, report.rows, strict=True):
        success = row.chains.average_length if row.chains else row.single_tasks.success if row.single_tasks else None
        call, step = joined.per_call_ms, joined.per_control_step_ms
        rows.append(
            (
                row.name,
                row.loop,
                "-" if success is None else f"{success.value:.3f} [{success.low:.3f}, {success.high:.3f}]",
                f"{call.p50:.2f}",
                f"{step.p50:.2f}",
                f"{step.p99:.2f}",
                "-" if joined.completion_s is None else f"{joined.completion_s:.2f}",
                "-" if joined.synchronous_completion_s is None else f"{joined.synchronous_completion_s:.2f}",
                "-" if joined.jerk is None else f"{joined.jerk:.3f}",
            )
        )
    measure = "average length" if report.success.conditions.num_chains else "success"
    columns = ("row", "kind", measure, "call ms", "step ms", "step p99", "task s", "waiting", "jerk")
    threads = report.latency.conditions.threads
    title = f"success against latency: median call, timed alone with {threads or 'all'} threads, and the same over its steps"
    print_table(title, columns, rows, to_stderr=to_stderr)
