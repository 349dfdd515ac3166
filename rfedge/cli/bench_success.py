"""`rfedge bench success`: whether compiled policies still do CALVIN's chains and tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from rfedge.cli.success_options import (
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
    Mode,
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
from rfedge.limits import MAX_STEPS

__all__ = ["success"]


def success(
    bundles: Bundles,
    labels: Labels = None,
    trained_on: TrainedOn = None,
    execute_steps: Annotated[
        str | None,
        typer.Option(help="Control steps per policy call, with commas between; default: as each policy was trained."),
    ] = None,
    mode: Mode = None,
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
    backend: Backend = "onnxruntime",
    provider: Provider = "cpu",
    assert_average_length: LeastLength = None,
    assert_share: LeastShare = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Run bundles on the same chains and tasks, and say how much of the first one's success the others keep."""
    from rfedge.cli.reports import write_report
    from rfedge.cli.success_options import check_gates, make_plan, measure
    from rfedge.cli.success_tables import print_success

    plan = make_plan(
        bundles,
        labels,
        trained_on,
        execute_steps=execute_steps,
        ensemble=ensemble,
        mode=mode,
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
    report = measure(plan, num=num, output=output, workers=workers, ray=ray)
    print_success(report, to_stderr=as_json)
    write_report(report, as_json=as_json)
    check_gates(report, assert_average_length, assert_share)
