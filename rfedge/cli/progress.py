"""Progress bars on stderr, so that stdout stays readable by machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["round_progress", "stage_progress"]


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback (stage, done, total) that draws one bar per stage with elapsed and remaining time."""
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def round_progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) for timed rounds, whose bar is drawn between two rounds and never beside one."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal, auto_refresh=False) as progress:
        bar = progress.add_task("rounds", total=None)

        def update(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)
            progress.refresh()  # by hand: a refreshing thread would take part in the timings

        yield update
