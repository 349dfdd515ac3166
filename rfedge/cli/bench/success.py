"""`rfedge bench success`: whether compiled policies still do CALVIN's chains and tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfedge.cli.bench.success_options import (
    AsJson,
    Backend,
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
from rfedge.runtimes.control.limits import MAX_STEPS

__all__ = ["success"]


def success(
    policies: Annotated[
        list[Path],
        typer.Argument(
            help="Bundle folders or shipped policies; the first is what the others are compared with. With --precisions "
            "checkpoint folders or shipped policies."
        ),
    ],
    precisions: Annotated[
        str | None,
        typer.Option(
            help="Measure a checkpoint in these precisions, with commas between, or all: fp32, fp16, bf16, int8, "
            "int8-weight, int4-weight, mixed, nf4, llm-int8. Missing bundles are exported to OUTPUT.bundles; bf16, nf4 and "
            "llm-int8 run in PyTorch. Each is compared with fp32 in the same loop; then latency and memory are measured."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --precisions: demonstrations to export with; scripted experts collect some for a shipped one."
        ),
    ] = None,
    mixed_budget: Annotated[str, typer.Option(help="With --precisions: budget of mixed.")] = "action_error=0.05",
    iterations: Annotated[int, typer.Option(min=1, help="With --precisions: timed calls per policy.")] = 200,
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
    import functools

    from rfedge.cli.bench.precision_table import measure_table, prepare_table
    from rfedge.cli.bench.success_options import check_gates, make_plan, measure
    from rfedge.cli.bench.success_tables import print_success
    from rfedge.cli.show.reports import write_report
    from rfedge.policies import find_bundle

    plan_of = functools.partial(
        make_plan,
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
    if precisions is not None:
        prepared = prepare_table(policies, precisions, output=output, data=data, mixed_budget=mixed_budget)
        plan = plan_of(prepared.bundles, labels or prepared.labels, trained_on, torch=prepared.torch, pairing="same-loop")
        table = measure_table(
            plan, iterations=iterations, num=num, output=output, workers=workers, ray=ray, to_stderr=as_json
        )
        write_report(table, as_json=as_json)
        report = table.success
    else:
        plan = plan_of([find_bundle(path) for path in policies], labels, trained_on)
        report = measure(plan, num=num, output=output, workers=workers, ray=ray)
        print_success(report, to_stderr=as_json)
        write_report(report, as_json=as_json)
    check_gates(report, assert_average_length, assert_share)
