"""`rfedge replay`: run a record again and compare every action, bit for bit or within a tolerance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.options import AsJson, bundle_folder

if TYPE_CHECKING:
    from rfedge.runtimes.rollout.replay import ReplayReport


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
    _print(report)
    print_json(report)
    if report.difference is not None:
        raise typer.Exit(1)
    if stop.reason is not None:
        raise typer.Exit(SIGNAL_STATUS.get(stop.reason, 1))


def _print(report: ReplayReport) -> None:
    """Print whether every action came out as recorded, or the first one that did not."""
    from rfedge.cli.show.tables import say

    lines = []
    if report.is_cut:
        lines.append(f"note: the last line of {report.record} is not finished; it was left out")
    if report.difference is not None:
        lines += [
            f"episode {difference.episode}, step {difference.step}: {difference.what} differs\n"
            f"  recorded {difference.recorded}\n  replayed {difference.replayed}"
            for difference in (report.cause, report.difference)
            if difference is not None
        ]
        lines += [f"{name}: {versions}" for name, versions in report.changed_versions.items()]
    elif not report.num_steps:
        lines.append(f"{report.record} holds no step: nothing to compare")
    else:
        within = f"within {report.tolerance:g}, at most {report.largest_difference:.2g} off"
        alike = within if report.tolerance else "bit for bit"
        lines.append(f"{report.num_steps} steps of {report.num_episodes} episodes: every action as recorded, {alike}")
    say(*lines)
