"""A sweep as a picture: what more steps per call cost in success and save in time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rfedge.benchmarks.success.report import SuccessRow, ensemble_suffix
from rfedge.benchmarks.success.sweep_report import SweepReport, SweepRow
from rfedge.errors import BackendUnavailableError
from rfedge.io.atomic import atomic_file
from rfedge.records.statistics import Mean, Proportion

__all__ = ["can_draw", "check_can_draw", "draw_sweep"]

Interval = Mean | Proportion
Measure = tuple[str, Callable[[SuccessRow], Interval | None]]  # what the axis says, and what is read from a row
Lines = dict[str, list[tuple[SuccessRow, SweepRow]]]  # what the legend says -> its points

_MARKERS: Final = {"closed-loop": "o", "open-loop": "s", "jump-step": "^", "other": "X"}

_MARKER: Final[dict[str, Any]] = {"markersize": 8, "markeredgecolor": "black", "markeredgewidth": 0.6, "clip_on": False}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_can_draw() -> None:
    """Refuse a picture that could not be drawn after hours of rollouts.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
    """
    if not can_draw():
        raise BackendUnavailableError(
            "--plot", got="no matplotlib", expected="the 'plots' extra", remedy="pip install 'rfedge[plots]'."
        )


def draw_sweep(report: SweepReport, path: Path) -> None:
    """Draw success against the amortised latency and against the steps per call, with 95 % intervals, to a picture file.

    Success is the average length of the chains, and below it the share of the starts that were solved, where there were any.
    One line a bundle, ensemble, scene and language; the shape of a point is its kind.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
    """
    check_can_draw()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    lines: Lines = {}
    for row, joined in zip(report.success.rows, report.rows, strict=True):
        lines.setdefault(f"{row.policy}{ensemble_suffix(row.ensemble)}, scene {row.scene}, {row.language}", []).append(
            (row, joined)
        )
    for pairs in lines.values():
        pairs.sort(key=lambda pair: pair[0].execute_steps)
    conditions = report.success.conditions
    measures: list[Measure] = []
    if conditions.num_chains:
        measures.append(("average length (tasks in a row, of 5)", _average_length))
    if conditions.starts_per_task:
        measures.append(("share of the single tasks solved", _share_of_starts))
    figure = Figure(figsize=(12, 0.8 + 4.6 * len(measures)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(measures), 2, sharey="row", squeeze=False)
    for (name, measure), (by_latency, by_steps) in zip(measures, grid, strict=True):
        _draw_measure(by_latency, by_steps, lines, measure)
        by_latency.set_ylabel(name)
    grid[0][0].legend(fontsize=8, loc="best")
    kinds = [kind for kind in _MARKERS if any(row.kind == kind for row in report.success.rows)]
    handles = [Line2D([], [], color="grey", marker=_MARKERS[kind], linestyle="", label=kind) for kind in kinds]
    grid[0][1].legend(handles=handles, fontsize=8, loc="best")
    what = " and ".join(
        [f"{conditions.num_chains} chains"] * bool(conditions.num_chains)
        + [f"{conditions.starts_per_task} starts a task"] * bool(conditions.starts_per_task)
    )
    figure.suptitle(f"{report.success.world}, {what}, 95 % intervals; {report.latency.machine.cpu}", fontsize=11)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix(".") or "png")


def _draw_measure(by_latency: Any, by_steps: Any, lines: Lines, measure: Callable[[SuccessRow], Interval | None]) -> None:
    steps: set[int] = set()
    for number, (name, pairs) in enumerate(lines.items()):
        colour = f"C{number % 10}"
        drawn = [(row, joined, found) for row, joined in pairs if (found := measure(row)) is not None]
        # Beside each other, so that intervals at the same number of steps can be told apart.
        shift = 1 + 0.03 * (number - (len(lines) - 1) / 2)
        for axes, x in (
            (by_latency, [joined.per_control_step_ms.p50 for _, joined, _ in drawn]),
            (by_steps, [row.execute_steps * shift for row, _, _ in drawn]),
        ):
            values = [found.value for _, _, found in drawn]
            errors = [
                [found.value - found.low for _, _, found in drawn],
                [found.high - found.value for _, _, found in drawn],
            ]
            axes.errorbar(x, values, yerr=errors, color=colour, linewidth=1.2, capsize=3, label=name)
            for at, value, (row, _, _) in zip(x, values, drawn, strict=True):
                axes.plot(at, value, _MARKERS[row.kind], color=colour, **_MARKER)
        above = (7, 5 + 9 * (number % 4))  # points of two lines often lie on each other
        for row, joined, found in drawn:
            point = (joined.per_control_step_ms.p50, found.value)
            by_latency.annotate(f"k={row.execute_steps}", point, above, textcoords="offset points", fontsize=8, color=colour)
            steps.add(row.execute_steps)
    by_latency.set_xlabel("median policy call, divided by steps per call (ms per control step)")
    by_steps.set_xlabel("steps per call (execute_steps)")
    by_steps.set_xscale("log", base=2)
    by_steps.set_xticks(sorted(steps), [str(number) for number in sorted(steps)])
    by_steps.minorticks_off()
    for axes in (by_latency, by_steps):
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.margins(x=0.1)
        axes.set_ylim(bottom=0)
    by_latency.set_xlim(left=0)


def _average_length(row: SuccessRow) -> Interval | None:
    return None if row.chains is None else row.chains.average_length


def _share_of_starts(row: SuccessRow) -> Interval | None:
    return None if row.single_tasks is None else row.single_tasks.success
