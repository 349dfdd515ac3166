"""`rfedge tune`: the fastest way to run a bundle on this machine, written down for `run`, `serve` and `bench`."""

from __future__ import annotations

from typing import Any

from rfedge.benchmarks.latency.tune import TunePlan, TuneReport
from rfedge.cli.options import AsJson, Output, plan_of, with_options


@with_options(TunePlan)
def tune(output: Output = None, as_json: AsJson = False, **given: Any) -> None:
    from rfedge.benchmarks.latency.tune import run_tune
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.reports import write_report

    plan = plan_of(TunePlan, given)
    with stage_progress() as progress:
        report = run_tune(plan, progress=progress)
    _print(report)
    write_report(report, output)


def _print(report: TuneReport) -> None:
    from rfedge.cli.show.tables import print_table, say
    from rfedge.runtimes.backends.tuned import choice_file

    rows = [
        (
            duel.name,
            "-" if duel.call_ms is None else f"{duel.call_ms[0]:.2f}",
            "-" if duel.call_ms is None else f"{duel.call_ms[1]:.2f} ({duel.over})",
            "-" if (ratio := duel.speedup) is None else f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]",
            f"{duel.metrics['action_max_error']:.2g}" if duel.metrics else "-",
            duel.verdict,
        )
        for duel in report.duels
    ]
    columns = ("candidate", "call p50 ms", "over, call p50 ms", "speed-up [95 %]", "action error", "verdict")
    print_table(f"{report.bundle}, checked on {report.checked_on}", columns, rows)
    say(
        *([f"no time left for: {'; '.join(report.not_tried)} (raise --budget-s)"] if report.not_tried else []),
        f"tuned: {report.choice.describe()}",
        f"kept in {choice_file(report.choice.key)}; run, serve and bench latency follow it",
    )
