"""The pieces of a report: quoted rows, drawings, tables."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from rfedge.benchmarks.records.quoted import quoted_baselines
from rfedge.benchmarks.report.chart import Axis, Bar, Point, Range, Series, draw_bars, draw_points, draw_ranges
from rfedge.benchmarks.report.document import Cell, Table
from rfedge.benchmarks.report.success_part import pareto_front


def test_quoted_rows_have_a_source_and_lengths_that_are_the_sums_of_their_rates() -> None:
    quoted = quoted_baselines()
    assert {row.source for row in quoted.rows} == set(quoted.sources)
    assert len({(row.method, row.training, row.test, row.source) for row in quoted.rows}) == len(quoted.rows)
    for row in quoted.rows:
        if row.rates is not None:
            assert list(row.rates) == sorted(row.rates, reverse=True)
            assert row.average_length == pytest.approx(sum(row.rates), abs=0.011)
    headline = next(row for row in quoted.rows if row.method == "RoboFlamingo (M-3B-IFT)" and row.test == "D")
    assert headline.rates == (0.964, 0.896, 0.824, 0.74, 0.66)


def test_the_front_keeps_what_nothing_beats_in_both() -> None:
    points = [Point(1.0, 2.0), Point(2.0, 1.0), Point(3.0, 3.0), Point(3.0, 2.5), Point(4.0, 3.0)]
    assert [(point.x, point.y) for point in pareto_front(points)] == [(1.0, 2.0), (3.0, 3.0)]


def test_drawings_place_values_in_proportion() -> None:
    svg = draw_bars("t", "d", [Bar("a <", 1.0, "one"), Bar("b", 2.0, "two"), Bar("c", -1.0, "less")], "ms")
    widths = [float(one.get("width", "")) for one in ElementTree.fromstring(svg).iter("rect")]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(widths[0], abs=0.2)
    series = [Series("s", [Point(1.0, 0.0), Point(10.0, 5.0), Point(100.0, 10.0)], 0, is_line=True)]
    svg = draw_points("t", "d", series, Axis("x", log=True), Axis("y"))
    marks = [(float(one.get("cx", "")), float(one.get("cy", ""))) for one in ElementTree.fromstring(svg).iter("circle")]
    assert marks[1][0] - marks[0][0] == pytest.approx(marks[2][0] - marks[1][0], abs=0.2)
    assert marks[0][1] - marks[1][1] == pytest.approx(marks[1][1] - marks[2][1], abs=0.2)
    assert marks[0][1] > marks[2][1]  # more is higher
    for flat in ([Point(2.0, 0.0)], [Point(0.0, 0.0), Point(0.0, 0.0)]):
        ElementTree.fromstring(draw_points("t", "d", [Series("s", flat, 9)], Axis("x"), Axis("y")))
    ElementTree.fromstring(draw_bars("t", "d", [Bar("a", 0.0, "0")], "ms"))
    ElementTree.fromstring(draw_ranges("t", "d", [Range("a", [("p50", 0.0), ("p99", 0.0)])], "ms"))


def test_tables_escape_and_number_their_footnotes() -> None:
    table = Table("c | c", ["a|b", "*n*"], [["x\ny", Cell("1", "why [so]")], ["|", Cell("2", "why [so]")]])
    assert table.to_markdown().splitlines() == [
        "c | c",
        "",
        "| a\\|b | \\*n\\* |",
        "| --- | --- |",
        "| x y | 1 [1] |",
        "| \\| | 2 [1] |",
        "",
        "[1] why [so]  ",
    ]
    assert table.to_html().count("<li") == 1
    assert Table("", ["[a](http://b)"], []).to_markdown().splitlines()[-2] == "| \\[a](http://b) |"


def test_numbers_of_an_axis_do_not_run_into_each_other() -> None:
    bars = [Bar("a name of thirty-eight letters, or so it is", value, "text") for value in (0.0019, 0.0011)]
    svg = ElementTree.fromstring(draw_bars("t", "d", bars, "error"))
    ticks = [(float(one.get("x", "")), one.text or "") for one in svg.iter("text") if one.get("class") == "tick"]
    assert len(ticks) >= 2
    for (left, first), (right, second) in itertools.pairwise(ticks):
        assert right - left > 6 * (len(first) + len(second)) / 2


def test_a_label_that_finds_no_room_is_left_to_the_tooltip() -> None:
    points = [Point(1.0, 1.0, label=f"k={number}", tooltip=f"point {number}") for number in range(9)]
    svg = draw_points("t", "d", [Series("s", points, 0)], Axis("x", low=0.0, high=2.0), Axis("y", low=0.0, high=2.0))
    assert svg.count(">k=") == 4  # one on each side
    assert svg.count("<title>point ") == 9
