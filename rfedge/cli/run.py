"""`rfedge run`: drive a simulator with a bundle and say how often it succeeded, how long it took and how fast it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rfedge.cli.options import AsJson, plan_of, with_options
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.rollout.plan import RolloutPlan


@with_options(RolloutPlan)
def run(
    server_token_file: Annotated[
        Path | None, typer.Option(help="File with the server's token.", rich_help_panel="Policy")
    ] = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.progress import step_progress
    from rfedge.cli.show.tables import say, show_report
    from rfedge.policies import default_bundle
    from rfedge.runtimes.control.stopping import SIGNAL_STATUS, StopRequest, stop_on_signals
    from rfedge.runtimes.rollout.rollouts import run_rollouts

    fixed: dict[str, Any] = {}
    if given["bundle"] is None and given["server"] is None:
        fixed["bundle"] = default_bundle(given["mode"])
    plan = plan_of(RolloutPlan, given, **fixed)
    if plan.server is not None:
        from rfedge.runtimes.server.security import read_token

        plan = replace(plan, server=replace(plan.server, token=read_token(server_token_file)))
    stop = StopRequest()
    with step_progress(plan.episodes * plan.max_steps) as (advance, warn), stop_on_signals(stop):

        def on_step(episode: int, step: ControlStep) -> None:
            # Set, not advanced: an episode that succeeds early fills its share at once.
            advance(episode * plan.max_steps + step.index + 1)

        report = run_rollouts(plan, on_load=warn, on_step=on_step, stop=stop)
    show_report(report)
    if report.stopped_by is not None:
        say(f"stopped by {report.stopped_by}: zero motion, gripper held")
    if "tuned" in report.settings:
        say(f"tuned: {report.settings['tuned']}")
    for name, path in {"video": plan.video, "record": plan.record, "rerun": plan.rerun}.items():
        if path is not None:
            cut = f", cut: {report.record_error}" if name == "record" and report.record_error is not None else ""
            say(f"{name}: {path}{cut}")
    if report.stopped_by is not None:
        raise typer.Exit(SIGNAL_STATUS.get(report.stopped_by, 1))
    if report.was_stopped or report.record_error is not None:
        raise typer.Exit(1)
