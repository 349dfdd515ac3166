"""Progress bars on stderr, so that stdout stays readable by machines, and what a command that is stopped says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import typer
from rich import progress as bars
from rich.console import Console

from rfedge.jobs.progress import Count, StageProgress

if TYPE_CHECKING:
    from rfedge.runtimes.policy.edge_policy import EdgePolicy
    from rfedge.train import TrainingStep

_STATUSES: Final = (129, 143)  # of SIGHUP and SIGTERM, see `rfedge.cli.app.main`


def _bars(*columns: bars.ProgressColumn, **settings: Any) -> bars.Progress:
    """Return bars with what `columns` show of how far they are, and elapsed and remaining time."""
    ends = (bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    # Some stages go on once a minute, so that what is left follows from the last ten.
    shown = (bars.TextColumn("{task.description:<18}"), bars.BarColumn(), *columns, *ends)
    return bars.Progress(*shown, console=Console(stderr=True), speed_estimate_period=600.0, **settings)


@contextmanager
def step_progress(total: int) -> Iterator[tuple[Callable[[int | None], None], Callable[[EdgePolicy], None]]]:
    """Yield a callback for the control steps done (None: one more) and one that warns of a bundle forced past its proof."""
    with _bars(bars.MofNCompleteColumn(), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("steps", total=total)

        def advance(done: int | None) -> None:
            progress.update(bar, completed=done, advance=1 if done is None else None)

        def warn(policy: EdgePolicy) -> None:
            if missed := policy.parts.forced_past:
                source = policy.parts.source
                text = f"warning: {source} was exported with --force; its proof missed {'; '.join(missed)}"
                progress.console.print(text, highlight=False, soft_wrap=True, markup=False)

        yield advance, warn


@contextmanager
def stage_progress() -> Iterator[StageProgress]:
    """Yield a callback (stage, done, total) that draws one bar per stage with elapsed and remaining time."""
    with _bars(bars.MofNCompleteColumn()) as progress:
        tasks = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:  # what is done already says nothing about the speed
                tasks[stage] = progress.add_task(stage, total=total, completed=done)
            progress.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def round_progress() -> Iterator[Count]:
    """Yield a callback (done, total) for timed rounds, whose bar is drawn between two rounds and never beside one."""
    with _bars(bars.TaskProgressColumn(), transient=True, disable=not sys.stderr.isatty(), auto_refresh=False) as progress:
        bar = progress.add_task("rounds", total=None)

        def update(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)
            progress.refresh()  # by hand: a refreshing thread would take part in the timings

        yield update


@contextmanager
def training_progress(stage_of_steps: str = "training") -> Iterator[tuple[StageProgress, Callable[[TrainingStep], None]]]:
    """Yield two callbacks that draw on stderr: one bar a preparing stage, and the run's with step, loss and time left."""
    with _bars(bars.TaskProgressColumn(), bars.TextColumn("{task.fields[status]}")) as progress:
        tasks: dict[str, bars.TaskID] = {}
        smooth: float | None = None

        def show(stage: str, done: float, total: float, status: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, status="")
            progress.update(tasks[stage], completed=done, status=status)

        def on_stage(stage: str, done: int, total: int) -> None:
            show(stage, done, total, f"{done} of {total}")

        def on_step(report: TrainingStep) -> None:
            nonlocal smooth
            smooth = report.loss if smooth is None else smooth + 0.05 * (report.loss - smooth)
            show(stage_of_steps, report.share, 1.0, f"step {report.step}  loss {smooth:.4f}")

        yield on_stage, on_step


@contextmanager
def kept_when_stopped(kept: str) -> Iterator[None]:
    """Print "rfedge: stopped; `kept`" when a signal ends the block, and exit with its status."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        status = end.code if isinstance(end, SystemExit) else 130
        if isinstance(end, SystemExit) and status not in _STATUSES:
            raise
        print(f"rfedge: stopped; {kept}", file=sys.stderr)
        raise typer.Exit(status if isinstance(status, int) else 1) from None
