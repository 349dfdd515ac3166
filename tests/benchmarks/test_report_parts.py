"""The pieces of a report: quoted rows, plots, tables."""

import base64
import re
from xml.etree import ElementTree

import pytest

from rfedge.benchmarks.report.build import quoted_baselines
from rfedge.benchmarks.report.bundles import world
from rfedge.benchmarks.report.markdown import Section, Table, interval, share, to_page
from rfedge.benchmarks.report.plots import Bar, Point, plot_bars, plot_points


def test_quoted_rows_have_a_source_and_lengths_that_are_the_sums_of_their_rates() -> None:
    quoted = quoted_baselines()
    assert {row["source"] for row in quoted["rows"]} == set(quoted["sources"])
    names = [(row["method"], row["training"], row["test"], row["source"]) for row in quoted["rows"]]
    assert len(set(names)) == len(names)
    for row in quoted["rows"]:
        if "rates" in row:
            assert row["rates"] == sorted(row["rates"], reverse=True)
            assert row["average_length"] == pytest.approx(sum(row["rates"]), abs=0.011)
    headline = next(row for row in quoted["rows"] if row["method"] == "RoboFlamingo (M-3B-IFT)" and row["test"] == "D")
    assert headline["rates"] == [0.964, 0.896, 0.824, 0.74, 0.66]


def svg_of(figure: str) -> bytes:
    """Return the picture in an element of the page."""
    return base64.b64decode(figure.split("base64,")[1].split('"')[0])


def test_bars_stand_in_proportion_and_their_labels_are_inside() -> None:
    bars = [Bar("a name of more than thirty-eight letters, as it is", 1.0, "one"), Bar("b <", 2.0, "two", high=9.0)]
    figure = plot_bars([*bars, Bar("c", -1.0, "less")], "ms", "a caption", ("first",)).to_html()
    drawing = ElementTree.fromstring(svg_of(figure))
    paths = [one.get("d", "") for one in drawing.iterfind(".//{*}g[@id='axes_1']/{*}g/{*}path")]
    boxes = [[float(number) for number in re.findall(r"-?\d+\.?\d*", path)] for path in paths if path.count("L") == 3]
    widths = [max(box[::2]) - min(box[::2]) for box in boxes][-3:]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    assert widths[2] == pytest.approx(widths[0], rel=0.01)
    for one in ([Bar("a", 0.0, "0")], [Bar("a", 0.0, "0"), Bar("b", 0.0, "0", high=0.0)]):
        ElementTree.fromstring(svg_of(plot_bars(one, "ms", "").to_html()))


def test_points_without_spread_are_plotted_and_the_same_points_give_the_same_bytes() -> None:
    for log in (False, True):
        points = [Point("s <", 2.0, 0.0, 0.0, 0.0, "k=1"), Point("s <", 2.0, 0.0, 0.0, 0.0, "k=2")]
        first, again = (plot_points(points, "x", "y", 5.0, "c", log=log).to_html() for _ in range(2))
        assert first == again


def test_tables_escape_and_number_their_footnotes() -> None:
    table = Table("c | c", ["a|b", "*n*"], [["x\ny", ("1", "why [so]")], ["|", ("2", "why [so]")]])
    assert table.to_markdown().splitlines() == [
        "c \\| c",
        "",
        "| a\\|b | \\*n\\* |",
        "| --- | ---: |",
        "| x y | 1 [1] |",
        "| \\| | 2 [1] |",
        "",
        "[1] why [so]",
    ]
    assert Table("", ["[a](http://b)"], []).to_markdown().splitlines()[0] == "| \\[a](http://b) |"


def test_an_interval_says_how_many_samples_it_is_of_and_none_is_shown_without_spread() -> None:
    assert interval({"value": 2.5, "low": 2.0, "high": 3.0, "n": 60}) == "2.50 [2.00, 3.00], n = 60"
    assert interval({"value": 0.0, "low": 0.0, "high": 0.0, "n": 2}) == "0.00, n = 2"
    assert share({"value": 0.5, "low": 0.25, "high": 0.75}) == "50 % [25, 75]"


def test_a_page_escapes_scripts_and_gives_solved_shares_a_background() -> None:
    words = "<script>alert(1)</script> ![x](http://127.0.0.1/x.png)"
    html = to_page(words, [Section("first", [Table(words, ["task", "run"], [[words, "1/2"]])]), Section(words, [words])])
    assert "<script" not in html
    assert 'src="http' not in Table(words, [words], []).to_markdown() + html.split("<nav")[0]
    assert '--heat:0.500" data-heat=""' in html


def test_tables_name_looks_and_renderer_only_where_they_are_not_the_usual_ones() -> None:
    assert world("playtable", "playtable", "egl", "D") == world("playtable", None, "egl", "D") == "PlayTable D"
    assert world("playtable", "calvin", "egl", "A") == "PlayTable in CALVIN's looks A"
    assert world("calvin", "calvin", "egl (llvmpipe)", "D") == "CALVIN D"
    assert world("calvin", "calvin", "tiny", "D") == "CALVIN (tiny) D"
