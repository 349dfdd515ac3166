"""`rfedge tune`: the fastest way to run a bundle on this machine, written down for `run`, `serve` and `bench`."""

from __future__ import annotations

from typing import Any

from rfedge.benchmarks.latency.tune import TunePlan
from rfedge.cli.options import AsJson, Output, plan_of, with_options


@with_options(TunePlan)
def tune(output: Output = None, as_json: AsJson = False, **given: Any) -> None:
    from rfedge.benchmarks.latency.tune import run_tune
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import say, show_report
    from rfedge.runtimes.backends.tuned import choice_file

    plan = plan_of(TunePlan, given)
    with stage_progress() as progress:
        report = run_tune(plan, progress=progress)
    show_report(report, output)
    say(
        f"tuned: {report.choice.describe()}",
        f"kept in {choice_file(report.choice.key)}; run, serve and bench latency follow it",
    )
