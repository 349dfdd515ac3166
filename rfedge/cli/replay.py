"""`rfedge replay`: run a record again and compare every action, bit for bit or within a tolerance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfedge.cli.options import AsJson, bundle_folder


def replay(
    record: Annotated[Path, typer.Argument(help="File that `rfedge run --record` wrote.")],
    bundle: Annotated[
        Path | None, typer.Argument(callback=bundle_folder, help="Where its bundle is now; default: where it was.")
    ] = None,
    from_frames: Annotated[
        bool, typer.Option("--from-frames", help="Show the frames of `run --record-frames`; needs no simulator.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="With --from-frames: how far a number of an action may be off.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    from rfedge.cli.show.progress import step_progress
    from rfedge.cli.show.run_output import print_replay
    from rfedge.cli.show.tables import print_json
    from rfedge.runtimes.control.stopping import SIGNAL_STATUS, StopRequest, stop_on_signals
    from rfedge.runtimes.rollout.replay import replay_run
    from rfedge.runtimes.rollout.run_record import read_run

    total = sum(len(episode.steps) for episode in read_run(record).episodes)
    stop = StopRequest()
    with step_progress(total) as (advance, warn), stop_on_signals(stop):
        report = replay_run(
            record,
            bundle=bundle,
            from_frames=from_frames,
            tolerance=tolerance,
            on_load=warn,
            on_step=lambda *_: advance(None),
            stop=stop,
        )
    print_replay(report)
    print_json(report)
    if report.difference is not None:
        raise typer.Exit(1)
    if stop.reason is not None:
        raise typer.Exit(SIGNAL_STATUS.get(stop.reason, 1))
