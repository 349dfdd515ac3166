"""`rfedge bench latency`: bundles and the PyTorch original timed against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rfedge.benchmarks.latency import run as library
from rfedge.benchmarks.latency.isolated import IsolatedPlan
from rfedge.cli.options import AsJson, Output, plan_of, with_options


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
    output: Output = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.progress import round_progress
    from rfedge.cli.show.tables import show_report

    plan = plan_of(library.LatencyPlan, given)
    if isolate:
        from rfedge.benchmarks.latency.isolated import assert_isolated, check_assertable, run_isolated
        from rfedge.cli.show.progress import stage_progress

        if assert_speedup is not None:
            check_assertable(plan)
        with stage_progress() as progress:
            isolated = run_isolated(plan_of(IsolatedPlan, given, latency=plan), progress=progress)
        show_report(isolated, output)
        if assert_speedup is not None:
            assert_isolated(isolated, speedup=assert_speedup, peak_gib=assert_peak_gib)
        return
    observations = None if data is None else library.dataset_observations(data)
    inputs = "seeded noise" if data is None else f"dataset {data}"
    with round_progress() as on_round:
        report = library.run_latency(plan, observations=observations, inputs=inputs, on_round=on_round)
    show_report(report, output)
    if assert_faster:
        library.assert_faster(report)  # last, so that the numbers behind a failed gate are on the screen
