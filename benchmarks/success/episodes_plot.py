"""Predicted beside recorded actions of single episodes as a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

import numpy as np

from rfedge.benchmarks.success.episodes import EpisodesReport, Traces
from rfedge.contract import ActionSemantics
from rfedge.io.plotting import check_matplotlib, save_figure
from rfedge.messages import POSE_SIZE

_QUANTILES: Final = (0.0, 0.5, 1.0)


def draw_episodes(report: EpisodesReport, traces: Traces, path: Path) -> None:
    """Plot the episodes with the least, median and largest error of the first policy: a column each, a row per axis."""
    check_matplotlib("--plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    errors = [
        float(np.abs(ours[:, :POSE_SIZE] - theirs[:, :POSE_SIZE]).mean())
        for ours, theirs in zip(traces.predicted[0], traces.recorded, strict=True)
    ]
    order = np.argsort(errors, kind="stable")
    shown = list(dict.fromkeys(int(order[round(share * (len(order) - 1))]) for share in _QUANTILES))
    names = ActionSemantics().order
    figure = Figure(figsize=(1 + 4.6 * len(shown), 11), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(names), len(shown), sharex="col", sharey="row", squeeze=False)
    for column, episode in enumerate(shown):
        first, task, instruction = report.episodes[episode]
        title = f"{textwrap.fill(instruction, 60)}\n{task}, frame {first}, mean error {errors[episode]:.3f}"
        grid[0][column].set_title(title, fontsize=9)
        for axis, name in enumerate(names):
            axes = grid[axis][column]
            how = "steps-post" if name == "gripper" else "default"
            axes.plot(traces.recorded[episode][:, axis], color="black", linewidth=1.8, drawstyle=how, label="recorded")
            for number, (row, predicted) in enumerate(zip(report.rows, traces.predicted, strict=True)):
                label = f"{row.policy} {row.precision}"
                axes.plot(predicted[episode][:, axis], color=f"C{number}", linewidth=1.0, drawstyle=how, label=label)
            axes.set_ylim(-1.08, 1.08)
            axes.grid(visible=True, alpha=0.3)
            if column == 0:
                axes.set_ylabel(name)
        grid[-1][column].set_xlabel("control step")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    save_figure(figure, path)
