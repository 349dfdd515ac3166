"""`rfedge bench latency`: bundles and the PyTorch original timed against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.bundle_names import bundle_folder, checkpoint_folder
from rfedge.cli.show.resource_tables import print_resources

if TYPE_CHECKING:
    from rich.console import Console

    from rfedge.benchmarks.records.schema import LatencyReport

__all__ = ["latency"]


def latency(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            callback=bundle_folder, help="Bundle folders or shipped policies; the first is also the noise floor."
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(callback=checkpoint_folder, help="Compare with this checkpoint or shipped policy in PyTorch."),
    ] = None,
    execute_steps: Annotated[
        int | None, typer.Option(help="Control steps that one policy call serves; default: as the first one was trained.")
    ] = None,
    warmup: Annotated[int, typer.Option(help="Untimed calls per variant.")] = 20,
    iterations: Annotated[int, typer.Option(help="Timed calls per variant.")] = 200,
    settle_ms: Annotated[float, typer.Option(help="Untimed pause before each call, for other threads to sleep.")] = 20.0,
    threads: Annotated[int, typer.Option(help="Threads of every variant; 0 is each backend's own choice.")] = 2,
    spinning: Annotated[str, typer.Option(help="onnxruntime workers: always, within-call or never.")] = "within-call",
    seed: Annotated[int, typer.Option(help="Seed of inputs, order and bootstrap.")] = 0,
    instruction: Annotated[str, typer.Option(help="Instruction of every call.")] = "pull the handle to open the drawer",
    data: Annotated[Path | None, typer.Option(help="Take frames from this CALVIN dataset, not from noise.")] = None,
    assert_faster: Annotated[bool, typer.Option("--assert-faster", help="Fail unless int8 < fp32 < PyTorch.")] = False,
    backend: Annotated[str, typer.Option(help="What runs the bundles: onnxruntime, openvino or tensorrt.")] = "onnxruntime",
    provider: Annotated[str, typer.Option(help="Of onnxruntime: cpu, cuda, tensorrt or openvino.")] = "cpu",
    realtime_priority: Annotated[
        int | None,
        typer.Option(
            help="Schedule all threads before ordinary programs, 1 to 97: the noise of a shared machine goes down."
        ),
    ] = None,
    resource_seconds: Annotated[
        float,
        typer.Option(help="Then call each variant in a row for so long and sample memory, power, temperature; 0 does not."),
    ] = 0.0,
    output: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    from rich.console import Console

    from rfedge.benchmarks.latency import run as library
    from rfedge.cli.show.progress import round_progress
    from rfedge.cli.show.reports import write_report
    from rfedge.runtimes import RuntimeSettings
    from rfedge.runtimes.backends.ort_providers import parse_provider

    plan = library.LatencyPlan(
        bundles=tuple(bundles),
        checkpoint=checkpoint,
        instruction=instruction,
        execute_steps=execute_steps,
        warmup=warmup,
        iterations=iterations,
        settle_ms=settle_ms,
        seed=seed,
        settings=RuntimeSettings(threads=threads, spinning=spinning, providers=parse_provider(provider)),
        backend=backend,
        realtime_priority=realtime_priority,
        resource_seconds=resource_seconds,
    )
    observations = None if data is None else library.dataset_observations(data)
    inputs = "seeded noise" if data is None else f"dataset {data}"
    with round_progress() as on_round:
        report = library.run_latency(plan, observations=observations, inputs=inputs, on_round=on_round)
    _print(Console(stderr=as_json), report)
    write_report(report, output, as_json=as_json)
    if assert_faster:
        library.assert_faster(report)  # last, so that the numbers behind a failed gate are on the screen


def _print(console: Console, report: LatencyReport) -> None:
    from rich.table import Table

    from rfedge.runtimes.control.scheduling import describe_priority

    conditions, machine = report.conditions, report.machine
    steps = conditions.execute_steps
    table = Table(title=f"milliseconds per policy call, {conditions.iterations} calls after {conditions.warmup} untimed")
    for name in ("variant", "stage"):
        table.add_column(name)
    for name in ("mean", "p50", "p90", "p99", "max", f"p50 per control step (/{steps})"):
        table.add_column(name, justify="right")
    for variant in report.variants:
        for stage, summary in variant.per_call_ms.items():
            numbers = (summary.mean, summary.p50, summary.p90, summary.p99, summary.max, summary.p50 / steps)
            name = variant.name if stage == "preprocess" else ""
            table.add_row(name, stage, *(f"{number:.3f}" for number in numbers), end_section=stage == "total")
    console.print(table)
    ratios = Table(title="speed-up by median total, 95 % interval")
    for name in ("variant", "over", "speed-up", "bundle MB", "load MB"):
        ratios.add_column(name, justify="left" if name in ("variant", "over") else "right")
    by_name = {variant.name: variant for variant in report.variants}
    for comparison in report.comparisons:
        if comparison.stage == "total":
            ratio, variant = comparison.speedup, by_name[comparison.variant]
            ratios.add_row(
                comparison.variant,
                comparison.baseline,
                f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]",
                f"{variant.size_bytes / 1e6:.1f}",
                f"{variant.load_rss_bytes / 1e6:.1f}",
            )
    if ratios.row_count:
        console.print(ratios)
    if report.idle is not None:
        used = {variant.name: variant.resources for variant in report.variants if variant.resources is not None}
        print_resources(console, {"(idle)": report.idle, **used}, when="called in a row")
    floor = report.noise_floor
    console.print(
        f"noise floor (first bundle against itself): {floor.value:.3f}x [{floor.low:.3f}, {floor.high:.3f}]\n"
        f"{machine.cpu}, {machine.usable_cores} cores, {' '.join(machine.cpu_flags)}; {conditions.threads} threads, "
        f"spinning {conditions.spinning}, {describe_priority(conditions.realtime_priority)}; "
        f"{', '.join(f'{name} {version}' for name, version in report.versions.items())}; "
        f"peak memory of this process {(report.peak_rss_bytes or 0) / 1e6:.0f} MB; commit {report.commit}",
        highlight=False,
        soft_wrap=True,
    )
