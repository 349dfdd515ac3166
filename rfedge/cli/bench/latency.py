"""`rfedge bench latency`: bundles and the PyTorch original timed against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfedge.benchmarks.latency import run as library
from rfedge.benchmarks.latency.isolated import IsolatedPlan
from rfedge.cli.options import AsJson, plan_of, with_options
from rfedge.cli.show.profile_tables import print_profiles
from rfedge.cli.show.resource_tables import print_resources

if TYPE_CHECKING:
    from rich.console import Console

    from rfedge.benchmarks.records.schema import LatencyReport


@with_options(library.LatencyPlan, IsolatedPlan)
def latency(
    data: Annotated[
        Path | None, typer.Option(help="Take frames from this CALVIN dataset, not from noise.", rich_help_panel="Calls")
    ] = None,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate",
            help="Each variant in a process of its own, in rounds: for policies that do not fit into memory together, with "
            "peak memory and the machine's own limit.",
            rich_help_panel="Isolated",
        ),
    ] = False,
    assert_speedup: Annotated[
        float | None,
        typer.Option(
            help="With --isolate: fail unless the first bundle is this many times faster than PyTorch.",
            rich_help_panel="Isolated",
        ),
    ] = None,
    assert_peak_gib: Annotated[
        float | None,
        typer.Option(help="With --assert-speedup: most memory of the first bundle.", rich_help_panel="Isolated"),
    ] = None,
    assert_faster: Annotated[bool, typer.Option("--assert-faster", help="Fail unless int8 < fp32 < PyTorch.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rich.console import Console

    from rfedge.cli.show.progress import round_progress
    from rfedge.cli.show.reports import write_report

    plan = plan_of(library.LatencyPlan, given)
    if isolate:
        from rfedge.benchmarks.latency.isolated import assert_isolated, run_isolated
        from rfedge.cli.bench.isolated_table import print_isolated
        from rfedge.cli.show.progress import stage_progress

        with stage_progress() as progress:
            isolated = run_isolated(plan_of(IsolatedPlan, given, latency=plan), progress=progress)
        print_isolated(Console(stderr=as_json), isolated)
        write_report(isolated, output, as_json=as_json)
        if assert_speedup is not None:
            assert_isolated(isolated, speedup=assert_speedup, peak_gib=assert_peak_gib)
        return
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
    if report.profiles is not None:
        print_profiles(console, report.profiles)
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
