"""Plots of measured points and bars, for the page and for picture files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rfedge.benchmarks.report.markdown import Figure
from rfedge.io.plotting import check_matplotlib, save_figure

_WIDTH: Final = 5.6  # inches: readable at the width of a phone
_MARKERS: Final = "osD^vPX*"
# Text as outlines: a font that the reader's machine lacks would be another width, and cut a label.
_STYLE: Final[Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "rfedge",
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


@dataclass(frozen=True, slots=True)
class Point:
    """A measured point with the 95 % interval of `y`; points of one series share colour and shape."""

    series: str
    x: float
    y: float
    low: float
    high: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A horizontal bar from 0 with its text behind it; a line reaches from `low`, or else its end, to `high`."""

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    colour: int = 0


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot, for a page or beside others in a file; `draw` takes a figure or a part of one."""

    draw: Callable[[Any], None]
    height: float  # inches, beside a width of `_WIDTH`
    caption: str

    def to_html(self) -> str:
        content = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the same bytes for the same records
        with _style():
            figure = _canvas(_WIDTH, self.height)
            self.draw(figure)
            figure.savefig(content, format="svg", bbox_inches="tight", metadata=nothing)
        return Figure(content.getvalue(), "image/svg+xml", self.caption).to_html()


def save_plots(plots: Sequence[Plot], path: Path) -> None:
    """Write plots side by side to a picture file."""
    check_matplotlib("--plot")
    with _style():
        figure = _canvas(_WIDTH * len(plots), max(plot.height for plot in plots))
        for plot, part in zip(plots, figure.subfigures(1, len(plots), squeeze=False)[0], strict=True):
            plot.draw(part)
            part.suptitle(textwrap.fill(plot.caption, 70), fontsize=9)
        save_figure(figure, path)


def plot_points(
    points: Sequence[Point], x_label: str, y_label: str, y_max: float, caption: str, *, log: bool = False
) -> Plot:
    """Plot at least one point; `log` is the scale of the horizontal axis."""
    series = list(dict.fromkeys(point.series for point in points))

    def draw(figure: Any) -> None:
        from matplotlib.ticker import LogLocator

        axes = _axes(figure)
        for number, name in enumerate(series):
            own = sorted((point for point in points if point.series == name), key=lambda point: point.x)
            values = [point.y for point in own]
            errors = [[p.y - p.low for p in own], [p.high - p.y for p in own]]
            style: dict[str, Any] = {"color": f"C{number}", "marker": _MARKERS[number % len(_MARKERS)], "capsize": 3}
            axes.errorbar([p.x for p in own], values, yerr=errors, label=name, linewidth=1.2, markersize=7, **style)
            for p in own if len({point.label for point in points}) > 1 else ():
                axes.annotate(p.label, (p.x, p.y), (7, 5), textcoords="offset points", fontsize=8.5, color=f"C{number}")
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.margins(x=0.15)
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, y_max))
        figure.legend(loc="outside lower left", frameon=False, fontsize=9)

    return Plot(draw, 3.6 + 0.22 * len(series), caption)


def plot_bars(bars: Sequence[Bar], x_label: str, caption: str, legend: Sequence[str] = ()) -> Plot:
    """Plot at least one bar; `legend` names the colours."""
    names = [textwrap.fill(bar.name, 30) for bar in bars]

    def draw(figure: Any) -> None:
        from matplotlib.patches import Patch

        axes, places = _axes(figure), range(len(bars))
        axes.barh(places, [bar.value for bar in bars], height=0.6, color=[f"C{bar.colour}" for bar in bars])
        for place, bar in zip(places, bars, strict=True):
            if bar.high is not None:
                ends = [bar.value if bar.low is None else bar.low, bar.high]
                axes.plot(ends, [place, place], color="black", linewidth=1, marker="|", markersize=5)
            end = max(bar.value, bar.high or 0.0, 0.0)
            axes.annotate(bar.text, (end, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(places, names, fontsize=8.5)
        axes.set(xlabel=x_label)
        # Room for the text behind the longest bar; at least one bar is in sight even where all are 0.
        low, high = min(0.0, *(b.value for b in bars)), max(1e-9, *(max(b.value, b.high or 0.0) for b in bars))
        axes.set_xlim(low, high + 0.35 * (high - low))
        axes.set_ylim(len(bars) - 0.4, -0.6)  # from the top down
        axes.grid(visible=False, axis="y")
        if legend:
            patches = [Patch(color=f"C{number}", label=name) for number, name in enumerate(legend)]
            figure.legend(handles=patches, loc="outside lower left")

    return Plot(draw, 0.9 + sum(0.18 + 0.15 * len(name.splitlines()) for name in names) + 0.25 * len(legend), caption)


def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def _canvas(width: float, height: float) -> Any:
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout="constrained")


def _axes(figure: Any) -> Any:
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return axes
