"""`rfedge bench env`: what a control step, its pictures and a reset of an environment cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfedge.benchmarks.latency import environment_speed as library
from rfedge.cli.options import AsJson, plan_of, with_options

if TYPE_CHECKING:
    from rfedge.benchmarks.latency.environment_speed import EnvironmentSpeedReport


@with_options(library.EnvironmentSpeedPlan)
def env(
    assert_step_ms: Annotated[
        float | None, typer.Option(help="Fail unless the median step with both cameras takes less.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.progress import round_progress
    from rfedge.cli.show.reports import write_report

    plan = plan_of(library.EnvironmentSpeedPlan, given)
    with round_progress() as on_round:
        report = library.run_environment_speed(plan, on_round=on_round)
    _print(report, as_json=as_json)
    write_report(report, output, as_json=as_json)
    if assert_step_ms is not None:
        library.assert_step_ms(report, assert_step_ms)  # last, so that the numbers behind a failed gate are on the screen


def _print(report: EnvironmentSpeedReport, *, as_json: bool) -> None:
    from rich.console import Console

    from rfedge.cli.show.tables import print_table

    labels = {
        "advance": "advance: physics alone",
        "static": "static camera",
        "gripper": "gripper camera",
        "observe": "observe: both cameras",
        "step": "step: physics and cameras",
        "reset": "reset: random blocks, cameras",
    }
    print_table(
        f"{report.environment} scene {report.scene}, looks {report.looks}, renderer {report.renderer}: ms per call",
        ("call", "calls", "mean", "p50", "p90", "p99", "max"),
        [
            (labels[name], s.n, *(f"{number:.2f}" for number in (s.mean, s.p50, s.p90, s.p99, s.max)))
            for name, s in report.per_call_ms.items()
        ],
        to_stderr=as_json,
    )
    step_ms, machine = report.per_call_ms["step"].p50, report.machine
    versions = report.versions | report.simulator_versions
    Console(stderr=as_json).print(
        f"built in {report.build_ms:.0f} ms; {1000.0 / step_ms:.0f} control steps a second with pictures, "
        f"{1000.0 / step_ms / report.control_hz:.2f}x real time\n"
        f"{machine.cpu}, {machine.usable_cores} cores; {', '.join(f'{name} {value}' for name, value in versions.items())}; "
        f"commit {report.commit}",
        highlight=False,
        soft_wrap=True,
    )
