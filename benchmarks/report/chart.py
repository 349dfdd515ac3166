"""Drawings as SVG text: points with intervals, bars, and ranges. No library: a page must also be made on the robot.

Colours, strokes and fonts are classes that the page's style defines, for light, dark and print. A series differs from its
neighbours by shape as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

__all__ = ["Axis", "Bar", "Point", "Range", "Series", "draw_bars", "draw_points", "draw_ranges", "key"]

NUM_COLOURS: Final = 8  # that the page's style knows
_WIDTH: Final = 480
_HEIGHT: Final = 330
_LEFT: Final = 54
_RIGHT: Final = 14
_TOP: Final = 12
_BOTTOM: Final = 46
_LETTER: Final = 7.3  # width of a letter of the style's 12 px in a wide font
_ROW: Final = 22
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Point:
    """A measured point; `y_low` to `y_high` and `x_low` to `x_high` are drawn as intervals, `label` beside it."""

    x: float
    y: float
    y_low: float | None = None
    y_high: float | None = None
    x_low: float | None = None
    x_high: float | None = None
    label: str = ""
    tooltip: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour and shape; `is_line` joins them in order."""

    name: str
    points: Sequence[Point]
    index: int
    is_line: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """Title with unit; `low` and `high` must be inside even where no point is; `ticks` replaces the round numbers."""

    title: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    ticks: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """A horizontal bar from 0 with its text behind it."""

    name: str
    value: float
    text: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """A line with several marks on it, such as percentiles: (name, value)."""

    name: str
    marks: Sequence[tuple[str, float]]
    index: int = 0


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    stop: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.stop - self.start)


def draw_points(
    title: str, description: str, series: Sequence[Series], x: Axis, y: Axis, front: Sequence[Point] = ()
) -> str:
    """Draw points, lines and intervals.

    Args:
        title: name of the drawing for who cannot see it.
        description: what it shows, for the same.
        series: at least one with at least one point.
        x: horizontal.
        y: vertical.
        front: corners of a dashed staircase, from left to right.
    """
    points = [point for one in series for point in one.points]
    x_scale = _scale(x, [v for p in points for v in (p.x, p.x_low, p.x_high) if v is not None], _LEFT, _WIDTH - _RIGHT)
    y_scale = _scale(y, [v for p in points for v in (p.y, p.y_low, p.y_high) if v is not None], _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x, y, x_scale, y_scale)]
    if len(front) > 1:
        corners = [f"M{x_scale(front[0].x):.1f} {y_scale(front[0].y):.1f}"]
        corners += [f"H{x_scale(point.x):.1f}V{y_scale(point.y):.1f}" for point in front[1:]]
        parts.append(f'<path class="front" d="{"".join(corners)}"/>')
    for one in series:
        colour = one.index % NUM_COLOURS
        if one.is_line and len(one.points) > 1:
            path = " ".join(f"{x_scale(p.x):.1f},{y_scale(p.y):.1f}" for p in one.points)
            parts.append(f'<polyline class="line s{colour}" points="{path}"/>')
        parts += [_point(point, one, x_scale, y_scale) for point in one.points]
    parts.append(_labels(points, x_scale, y_scale))
    return _svg(title, description, _HEIGHT, "".join(parts))


def draw_bars(title: str, description: str, bars: Sequence[Bar], axis: str) -> str:
    """Draw at least one bar, one row each, negative ones to the left of zero."""
    left = _names_width([bar.name for bar in bars])
    behind = max(len(bar.text) for bar in bars) * _LETTER + 8
    values = [bar.value for bar in bars]
    scale = _scale(Axis(axis, low=0.0, high=max(0.0, *values)), values, left + 4, _WIDTH - behind, padded=False)
    height = _TOP + _ROW * len(bars) + _BOTTOM
    bottom = height - _BOTTOM
    parts = [_grid_x(axis, scale, left, _WIDTH - behind, bottom)]
    zero = scale(0.0)
    for row, bar in enumerate(bars):
        middle = _TOP + _ROW * (row + 0.5)
        at = scale(bar.value)
        parts.append(f'<text class="name" x="{left - 4:.1f}" y="{middle + 4:.1f}">{escape(_shortened(bar.name))}</text>')
        parts.append(
            f'<rect class="bar f{bar.index % NUM_COLOURS}" x="{min(zero, at):.1f}" y="{middle - 7:.1f}" '
            f'width="{max(abs(at - zero), 0.5):.1f}" height="14"><title>{escape(f"{bar.name}: {bar.text}")}</title></rect>'
        )
        parts.append(f'<text class="value" x="{max(zero, at) + 5:.1f}" y="{middle + 4:.1f}">{escape(bar.text)}</text>')
    return _svg(title, description, height, "".join(parts))


def draw_ranges(title: str, description: str, ranges: Sequence[Range], axis: str) -> str:
    """Draw at least one row of marks each on its line; the marks of a row get weaker to the right."""
    left = _names_width([one.name for one in ranges])
    values = [value for one in ranges for _, value in one.marks]
    scale = _scale(Axis(axis, low=0.0), values, left + 4, _WIDTH - _RIGHT)
    height = _TOP + _ROW * len(ranges) + _BOTTOM
    parts = [_grid_x(axis, scale, left, _WIDTH - _RIGHT, height - _BOTTOM)]
    for row, one in enumerate(ranges):
        middle, colour = _TOP + _ROW * (row + 0.5), one.index % NUM_COLOURS
        places = [scale(value) for _, value in one.marks]
        parts.append(f'<text class="name" x="{left - 4:.1f}" y="{middle + 4:.1f}">{escape(_shortened(one.name))}</text>')
        parts.append(f'<path class="line s{colour}" d="M{min(places):.1f} {middle:.1f}H{max(places):.1f}"/>')
        for place, (number, (name, value)) in zip(places, enumerate(one.marks), strict=True):
            words = escape(f"{one.name}, {name}: {value:.2f}")
            shape = _shape(number, place, middle, 5.0, f"f{colour}")
            parts.append(f"<g>{shape}<title>{words}</title></g>")
    return _svg(title, description, height, "".join(parts))


def key(index: int, colour: int | None = None) -> str:
    """Return a series' mark for a legend, in a colour of its own where the shape alone matters."""
    shade = index % NUM_COLOURS if colour is None else colour
    return (
        '<svg class="key" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">'
        f"{_shape(index, 8, 8, 5.5, f'f{shade}')}</svg>"
    )


def _svg(title: str, description: str, height: float, content: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(f"{title}. {description}")}">{content}</svg>'
    )


def _axes(x: Axis, y: Axis, x_scale: _Scale, y_scale: _Scale) -> str:
    bottom = _HEIGHT - _BOTTOM
    parts = [_grid_x(x.title, x_scale, _LEFT, _WIDTH - _RIGHT, bottom)]
    for tick in y_scale.ticks:
        at = y_scale(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{at + 4:.1f}">{_tick(tick)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text class="title" x="14" y="{middle:.1f}" transform="rotate(-90 14 {middle:.1f})">{escape(y.title)}</text>'
    )
    return "".join(parts)


def _grid_x(title: str, scale: _Scale, left: float, right: float, bottom: float) -> str:
    parts = []
    written = -math.inf  # where the last number ends: one that would run into it is left out
    for tick in scale.ticks:
        at, half_width = scale(tick), len(_tick(tick)) * _LETTER / 2
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom:.1f}"/>')
        if at - half_width > written + 4:
            parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16:.1f}">{_tick(tick)}</text>')
            written = at + half_width
    parts.append(f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>')
    parts.append(f'<text class="title" x="{(left + right) / 2:.1f}" y="{bottom + 36:.1f}">{escape(title)}</text>')
    return "".join(parts)


def _point(point: Point, series: Series, x_scale: _Scale, y_scale: _Scale) -> str:
    at_x, at_y, colour = x_scale(point.x), y_scale(point.y), series.index % NUM_COLOURS
    parts = []
    if point.y_low is not None and point.y_high is not None:
        low, high = y_scale(point.y_low), y_scale(point.y_high)
        parts.append(
            f'<path class="interval s{colour}" d="M{at_x:.1f} {low:.1f}V{high:.1f}m-4 0h8M{at_x - 4:.1f} {low:.1f}h8"/>'
        )
    if point.x_low is not None and point.x_high is not None:
        parts.append(
            f'<path class="interval s{colour}" d="M{x_scale(point.x_low):.1f} {at_y:.1f}H{x_scale(point.x_high):.1f}"/>'
        )
    parts.append(_shape(series.index, at_x, at_y, 5.0, f"f{colour}"))
    return f"<g>{''.join(parts)}<title>{escape(point.tooltip or series.name)}</title></g>"


def _labels(points: Sequence[Point], x_scale: _Scale, y_scale: _Scale) -> str:
    """Place each label beside its mark where nothing else stands; one that finds no room is left to the tooltip."""
    marks = [(x_scale(point.x), y_scale(point.y)) for point in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    parts = []
    for point, (x, y) in zip(points, marks, strict=True):
        width = len(point.label) * _LETTER
        for left, middle in ((x + 8, y - 8), (x + 8, y + 9), (x - 8 - width, y - 8), (x - 8 - width, y + 9)):
            box = (left, middle - 6, left + width, middle + 6)
            inside = box[0] > _LEFT and box[2] < _WIDTH - _RIGHT and box[1] > _TOP and box[3] < _HEIGHT - _BOTTOM
            if point.label and inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(f'<text class="value" x="{left:.1f}" y="{middle + 4:.1f}">{escape(point.label)}</text>')
                break
    return "".join(parts)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shape(index: int, x: float, y: float, r: float, colour: str) -> str:
    shapes: tuple[Callable[[], str], ...] = (
        lambda: f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
        lambda: f'<rect class="{colour}" x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>',
        lambda: f'<path class="{colour}" d="M{x:.1f} {y - r:.1f}l{r} {2 * r}h{-2 * r}z"/>',
        lambda: f'<path class="{colour}" d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z"/>',
    )
    return shapes[index % len(shapes)]()


def _scale(axis: Axis, values: Sequence[float], start: float, stop: float, *, padded: bool = True) -> _Scale:
    """Return a scale that holds all values, with round ticks."""
    known = [*values, *(v for v in (axis.low, axis.high) if v is not None)]
    low, high = min(known), max(known)
    is_log = axis.log and low > 0
    if is_log:
        low, high = low / 1.15, high * 1.15
        ticks = tuple(axis.ticks or (t for t in _log_ticks(low, high)))
    else:
        margin = 0.05 * (high - low or abs(high) or 1.0) if padded else 0.0
        low = low if low == axis.low else low - margin
        high = high if high == axis.high else high + margin
        high = high if high > low else low + 1.0
        ticks = tuple(axis.ticks or _round_ticks(low, high))
    return _Scale(low, high, start, stop, is_log, tuple(tick for tick in ticks if low <= tick <= high))


def _round_ticks(low: float, high: float) -> tuple[float, ...]:
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    return tuple(step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 300 else (1,)
    return tuple(factor * 10.0**decade for decade in decades for factor in factors)


def _tick(value: float) -> str:
    return f"{value:.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def _names_width(names: Sequence[str]) -> float:
    return min(280.0, 12 + _LETTER * max(len(_shortened(name)) for name in names))


def _shortened(name: str) -> str:
    return name if len(name) <= 38 else f"{name[:18]}…{name[-19:]}"
