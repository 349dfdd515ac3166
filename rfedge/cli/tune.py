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
    _print(report, to_stderr=as_json)
    write_report(report, output, as_json=as_json)


def _print(report: TuneReport, *, to_stderr: bool) -> None:
    import sys

    from rfedge.cli.show.tables import print_table
    from rfedge.runtimes.backends.tuned import choice_file

    rows = []
    for duel in report.duels:
        ratio = duel.speedup
        rows.append(
            (
                duel.name,
                "-" if duel.call_ms is None else f"{duel.call_ms[0]:.2f}",
                "-" if duel.call_ms is None else f"{duel.call_ms[1]:.2f} ({duel.over})",
                "-" if ratio is None else f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]",
                "-" if not duel.metrics else f"{duel.metrics['action_max_error']:.2g}",
                duel.verdict,
            )
        )
    columns = ("candidate", "call p50 ms", "over, call p50 ms", "speed-up [95 %]", "action error", "verdict")
    print_table(f"{report.bundle}, checked on {report.checked_on}", columns, rows, to_stderr=to_stderr)
    out = sys.stderr if to_stderr else sys.stdout
    if report.not_tried:
        print(f"no time left for: {'; '.join(report.not_tried)} (raise --budget-s)", file=out)
    print(f"tuned: {report.choice.describe()}", file=out)
    print(f"kept in {choice_file(report.choice.key)}; run, serve and bench latency follow it", file=out)
