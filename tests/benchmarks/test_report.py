"""The report: every number is a record's, what is missing is said, and the page loads nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer

from rfedge.benchmarks.records.quoted import quoted_baselines
from rfedge.benchmarks.report.build import Report, ReportPlan, build_report
from rfedge.benchmarks.success.chain_report import ChainConditions, ChainReport
from rfedge.benchmarks.success.sweep_report import SweepReport
from rfedge.cli.bench.app import bench_app
from rfedge.errors import ArtifactError, ConfigError
from tests.benchmarks.report_page import Page
from tests.benchmarks.report_records import (
    BOARD,
    MIXED,
    head,
    latency_report,
    meter,
    resources,
    success_report,
    sweep_report,
    variant,
    write_gif,
)

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LABELS = {"whole": "fp32", "small <b>": "int8"}
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)

app = typer.Typer()
app.add_typer(bench_app, name="bench")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    sweep_report(LABELS, (1, 4)).write(folder / "sweep.json")
    latency_report(variant("small <b>", "int8", with_resources=resources((meter(),), "")), machine=BOARD).write(
        folder / "deep" / "board.json"
    )
    (folder / "notes.json").write_text('{"hello": [1, 2]}')
    (folder / "broken.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def report(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    gif = write_gif(tmp_path_factory.mktemp("gifs") / "open-drawer.gif")
    return build_report(ReportPlan((records,), (gif.parent,), "A <title> & more"))


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.html)


def sweep(records: Path) -> SweepReport:
    return SweepReport.model_validate_json((records / "sweep.json").read_bytes())


def test_the_first_table_holds_the_numbers_of_the_records(page: Page, records: Path) -> None:
    document = sweep(records)
    header, *rows = page.table("Success with its 95 % interval, beside")
    assert header == [
        "bundle",
        "precision",
        "steps per call",
        "average length of 5",
        "single tasks",
        "share of reference",
        "run as",
        "call p50 / p90 / p99 ms",
        "p50 ms per step",
        "loading took MB",
        "peak MB",
        "power W",
        "J per action",
        "machine",
    ]
    on_laptop = [row for row in rows if row[-1] == "M1"]
    for row, success, timed in zip(on_laptop, document.success.rows, document.rows, strict=True):
        assert success.chains is not None
        length, call = success.chains.average_length, timed.per_call_ms
        assert row[:3] == [success.policy, success.precision, str(success.execute_steps)]
        assert row[3] == f"{length.value:.2f} [{length.low:.2f}, {length.high:.2f}]"
        assert row[4] == "0.900 [0.875, 0.920]"
        assert row[5] == ("reference" if success.paired is None else "0.957 [0.911, 1.004]")
        assert [float(number) for number in row[7].split(" / ")] == [
            pytest.approx(value, rel=0.01) for value in (call.p50, call.p90, call.p99)
        ]
        assert float(row[8]) == pytest.approx(call.p50 / success.execute_steps, rel=0.01)
        assert row[9:13] == ["70.2", "-", "-", "-"]
    on_board = [row for row in rows if row[-1] == "M2"]
    assert [row[2] for row in on_board] == ["1", "4"]
    assert {tuple(row[10:13]) for row in on_board} == {("432.1", "7.2", "0.125")}


def test_rates_tasks_and_differences_are_those_of_the_success(page: Page, records: Path) -> None:
    document = sweep(records)
    first = document.success.rows[0].chains
    assert first is not None
    _, row, *_ = page.table("Share of 200 chains with at least so many")
    assert row[2:7] == [f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]" for rate in first.success_rates.values()]
    header, *tasks = page.table("Tasks of chains")
    assert header[1:] == [row.name for row in document.success.rows]
    assert {row[0]: row[1] for row in tasks} == {
        task: f"{score.success.successes}/{score.success.n}" for task, score in first.tasks.items()
    }
    _, *paired = page.table("Differences from the reference")
    assert {tuple(row[2:]) for row in paired} == {("-0.125 [-0.250, +0.030]", "0.957 [0.911, 1.004]", "-", "-")}
    assert page.table("Asked for and not possible")[1] == ["int8", "int8", "16", "the policy predicts 8 steps, not 16"]
    _, *completion = page.table("Time of a solved task at 30 control steps per second")
    assert {tuple(row[3:]) for row in completion} == {("2.95", "-")}


def test_every_number_in_a_cell_with_a_point_is_one_of_the_records(page: Page, records: Path) -> None:
    """No figure on the page comes from anywhere else: each is a number of a record, or one divided by its steps."""
    documents = [json.loads((records / name).read_text()) for name in ("sweep.json", "deep/board.json")]
    documents.append(quoted_baselines().model_dump())
    known: set[float] = set()

    def gather(value: object) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                gather(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                gather(inner)
        elif isinstance(value, int | float):
            known.update(value * factor for factor in (1.0, 0.25, 1e-6, 2.0**-30))

    gather(documents)
    numbers = re.compile(r"(?<![\w.])[+-]?\d+\.\d+(?![\w.])")
    checked = 0
    for caption, table in page.tables.items():
        if caption.startswith(("Where every number", "Machines")):  # versions and addresses, no measurements
            continue
        for text in (match for row in table[1:] for cell in row for match in numbers.findall(cell)):
            half = 0.5001 * 10.0 ** -len(text.rpartition(".")[2])
            assert any(abs(float(text) - value) <= half for value in known), (caption, text)
            checked += 1
    assert checked > 200


def test_what_is_missing_is_said(report: Report, page: Page) -> None:
    assert "python -m rfedge.benchmarks.latency.precisions" in "".join(report.missing)
    assert "rfedge bench server" in "".join(report.missing)
    assert all(escape(words) in report.html for words in report.missing)
    assert {(one.name.split("/")[-1], one.reason) for one in report.collection.left_out} == {
        ("broken.json", "no JSON document"),
        ("notes.json", "no record in it: no format that begins with rfedge-"),
    }
    assert all(escape(one.reason) in report.html for one in report.collection.left_out)
    assert "not asked for: rfedge bench latency --resource-seconds" in report.html  # the reason of an empty place
    assert not any("pictures" in words for words in report.missing)


def test_the_page_is_well_formed_loads_nothing_and_escapes_what_records_say(report: Report, page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "b"} & page.tags
    assert all(address.startswith("data:") for address in page.loaded)
    assert len(page.loaded) == 1  # the GIF
    assert len(page.ids) == len(set(page.ids))
    inside = {f"#{name}" for name in page.ids}
    assert {link for link in page.links if not link.startswith("https://arxiv.org/abs/")} <= inside
    assert "@import" not in report.html
    assert "url(" not in report.html
    assert "<title>A &lt;title&gt; &amp; more</title>" in report.html
    assert "Test CPU <&>" not in report.html
    assert "small &lt;b&gt;" in report.html
    assert len(report.html) < 1_000_000


def test_drawings_are_xml_with_a_name_and_a_point_for_every_row(report: Report) -> None:
    drawings = [ElementTree.fromstring(text) for text in re.findall(r'<svg class="chart".*?</svg>', report.html, re.DOTALL)]
    names = [str(drawing.get("aria-label")) for drawing in drawings]
    assert [name.split(".")[0] for name in names] == [
        "Success against time",
        "Success over the horizon",
        *["Latency of whole policy calls"] * 2,
    ]
    tooltips = [title.text or "" for title in drawings[0].iter("title")]
    assert len(tooltips) == 6  # four ways on the laptop, the two of the timed bundle on the board too
    assert all(" ms per step" in tooltip for tooltip in tooltips)


def test_every_record_is_listed_with_where_it_comes_from(page: Page, records: Path) -> None:
    _, *rows = page.table("Where every number on this page comes from")
    assert [(row[0].split("/")[-1], *row[1:6]) for row in rows] == [
        ("board.json", "rfedge-latency", "2026-11-21T13:00:00+00:00", "0123456789ab-dirty", "M2", "-"),
        ("sweep.json", "rfedge-sweep", "2026-11-21T12:00:00+00:00", "0123456789ab-dirty", "M1", "egl"),
    ]
    assert {row[-1] for row in rows} == {"python 3.11.7, rfedge 0.1.0"}
    assert [row[0] for row in page.table("Machines")[1:]] == ["M1", "M2"]
    assert str(records) not in "".join(cell for row in rows for cell in row)  # a name, never a path of this machine


def test_markdown_has_one_table_for_each_bundle(report: Report, records: Path) -> None:
    blocks = re.split(r"^## ", report.markdown, flags=re.MULTILINE)
    assert [block.splitlines()[0] for block in blocks[1:]] == [
        "whole",
        "small \\<b>",
        "Quoted baselines",
        "Records and machines",
        "What is missing",
    ]
    rows = [line for line in blocks[1].splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 2  # head, rule, two numbers of steps
    length = sweep(records).success.rows[0].chains
    assert length is not None
    assert f"{length.average_length.value:.2f} [{length.average_length.low:.2f}" in rows[2]
    for block in blocks[1:3]:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines() if line.startswith("|")}
        assert len(widths) == 1


def test_the_first_sentence_says_what_was_measured(report: Report) -> None:
    assert report.sentence == (
        "Measured: success of whole, small <b> over 200 chains of five tasks and 20 starts of each of 1 task "
        "(playtable, scene D) and their latency on M1, Test CPU <&> with 4 cores; M2, Test board with 4 cores."
    )
    assert escape(report.sentence) in report.html


def test_speed_without_success_says_so_and_a_success_in_another_folder_gets_a_footnote(tmp_path: Path) -> None:
    alone = tmp_path / "latency.json"
    elsewhere = variant("int8", "int8").model_copy(update={"source": "elsewhere/int8"})
    latency_report(elsewhere, execute_steps=4).write(alone)
    page = build_report(ReportPlan((alone,)))
    assert page.sentence.endswith("No success was measured, and speed alone proves nothing.")
    _, row = Page(page.html).table("Timed without a record of success")
    assert row[:4] == ["int8", "int8", "4", "-"]
    assert "int8 in int8: no success" in page.missing
    assert "success of a policy: rfedge bench success" in page.missing
    together = tmp_path / "success.json"
    success_report({"small": "int8"}, (1,)).write(together)
    page = build_report(ReportPlan((alone, together)))
    assert "in another folder" in page.html
    assert [(row.label, row.execute_steps) for row in page.rows] == [("small", 1)]
    page = build_report(ReportPlan((together,)))
    assert "no latency record of this bundle" in page.html
    assert "small in int8: no latency" in page.missing


def test_bundles_of_one_size_are_told_apart_by_their_manifests(tmp_path: Path) -> None:
    sweep_report({"first": "int8", "second": "int8"}, (1,)).write(tmp_path / "sweep.json")
    longer = success_report({"second": "int8"}, (1,))
    moved = tuple(policy.model_copy(update={"path": "elsewhere"}) for policy in longer.policies)
    longer.model_copy(update={"policies": moved, "wall_seconds": 9.0}).write(tmp_path / "longer.json")
    page = build_report(ReportPlan((tmp_path / "sweep.json", tmp_path / "longer.json")))
    (row,) = (row for row in page.rows if row.record == "longer.json")
    assert row.speed is not None
    assert row.speed.label == "second"
    assert row.speed_note == "timed in sweep.json as 'second'"


def test_a_record_twice_is_taken_once_and_a_sweep_keeps_its_own_success(tmp_path: Path) -> None:
    document = sweep_report(LABELS, (1,))
    document.write(tmp_path / "sweep.json")
    document.write(tmp_path / "sweep-copy.json")
    document.success.write(tmp_path / "success.json")
    document.latency.write(tmp_path / "latency.json")
    first = document.success.rows[0].chains
    assert first is not None
    for name, shift in (("of-the-sweep", 0.0), ("another", 0.01)):
        length = first.average_length.model_copy(update={"value": first.average_length.value + shift})
        ChainReport(
            **head(),
            conditions=ChainConditions(
                environment="playtable",
                scene="D",
                agent={"name": "bundle"},
                language="evaluation",
                max_steps=360,
                seed=0,
                num_chains=200,
                chains_sha256="1" * 64,
            ),
            renderer="egl",
            average_length=length,
            success_rates=first.success_rates,
            tasks=first.tasks,
            mean_solved_steps=None,
            chain_seconds=1.0,
            wall_seconds=1.0,
            num_workers=1,
            num_resumed=0,
        ).write(tmp_path / f"{name}.json")
    built = build_report(ReportPlan((tmp_path,)))
    assert {one.name.split("/")[1]: one.reason.split("/")[0] for one in built.collection.left_out} == {
        "sweep.json": f"the same record as {tmp_path.name}",
        "success.json": f"a part of {tmp_path.name}",
        "latency.json": f"a part of {tmp_path.name}",
        "of-the-sweep.json": f"a part of {tmp_path.name}",
    }
    assert len(built.rows) == 2
    page = Page(built.html)
    assert [row[1] for row in page.table("Chains of five tasks")[1:]] == ["bundle"]


def test_two_successes_of_one_label_stay_apart(tmp_path: Path) -> None:
    first = success_report({"policy": "fp32"}, (1,))
    other_bundle = tuple(policy.model_copy(update={"manifest_sha256": "2" * 64}) for policy in first.policies)
    first.model_copy(update={"policies": other_bundle}).write(tmp_path / "first.json")
    success_report({"policy": "fp32"}, (1, 4)).write(tmp_path / "second.json")
    built = build_report(ReportPlan((tmp_path / "first.json", tmp_path / "second.json")))
    header, *rows = Page(built.html).table("Success with its 95 % interval, beside")
    assert [row[header.index("measured over")] for row in rows] == ["200 chains, 680 starts"] * 3
    assert [re.search(rf"<li[^>]*>{name}.json</li>", built.html) is not None for name in ("first", "second")] == [True, True]
    assert "policy, first.json" in built.html
    assert "policy, second.json" in built.html


def test_what_several_records_measured_is_drawn_once(tmp_path: Path) -> None:
    success_report({"policy": "fp32"}, (1,)).write(tmp_path / "few.json")
    success_report({"policy": "fp32"}, (1, 4)).write(tmp_path / "more.json")
    built = build_report(ReportPlan((tmp_path / "few.json", tmp_path / "more.json")))
    assert len(built.rows) == 3, "all are in the table"
    assert built.html.count("<title>policy, 1 steps: ") == 1
    assert "policy, few.json" not in built.html, "one record is left, which needs no name"


def test_a_mixed_search_becomes_bars_and_without_the_exporter_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "mixed.json").write_text(json.dumps(MIXED))
    latency_report(variant("int8", "int8")).write(tmp_path / "latency.json")
    html = build_report(ReportPlan((tmp_path,))).html
    assert [words in html for words in ("vision.0: 0.012", "decoder.1.block: 0.046", "vision.0: 1.250")] == [True] * 3
    assert "action_max_error at most 0.02; the plan has 0.0187." in html
    assert Page(html).table("Budget")[1] == ["mixed/fp32", "0.625"]
    monkeypatch.setitem(sys.modules, "rfedge.export.mixed.record", None)
    built = build_report(ReportPlan((tmp_path,)))
    (left_out,) = built.collection.left_out
    assert left_out.reason.startswith("format 'rfedge-mixed' needs a library that is not installed here")
    assert "what int8 does block by block" in "".join(built.missing)


def test_the_committed_results_make_a_page(tmp_path: Path) -> None:
    built = build_report(ReportPlan((RESULTS,)))
    page = Page(built.html)
    assert [one for one in built.collection.left_out if not one.reason.startswith("a part of")] == []
    assert len(built.html) < 5_000_000
    assert page.table("M-3B under")[1][0] == "PyTorch fp32"
    latency = json.loads((RESULTS / "demo_playtable-small_cpu_202611.json").read_text())["latency"]["variants"][0]
    tables = [table for caption, table in page.tables.items() if caption.startswith("Milliseconds per policy call")]
    medians = [float(row[2]) for table in tables for row in table if row[:2] == [latency["name"], "total"]]
    assert pytest.approx(latency["per_call_ms"]["total"]["p50"], rel=0.01) in medians


def test_users_errors_name_the_file(tmp_path: Path) -> None:
    def refusal(*sources: Path, pictures: tuple[Path, ...] = ()) -> str:
        with pytest.raises(ArtifactError) as error:
            build_report(ReportPlan(sources, pictures))
        return str(error.value)

    assert "got no such file or folder" in refusal(tmp_path / "none")
    assert "got no record, expected JSON files of rfedge bench" in refusal(tmp_path)
    named = tmp_path / "named.json"
    named.write_text('{"format": "rfedge-future"}')
    assert "format 'rfedge-future', which this report does not know" in refusal(named)
    named.write_text('{"format": "rfedge-loop", "schema_version": 1}')
    assert "of another version: measured_at: Field required" in refusal(named)
    named.write_text("no JSON")
    assert "got no JSON document" in refusal(named)
    latency_report(variant("int8", "int8")).write(tmp_path / "good.json")
    assert "got another kind of file" in refusal(tmp_path / "good.json", pictures=(named,))
    assert "got No such file" in refusal(tmp_path / "good.json", pictures=(tmp_path / "none.gif",))
    with pytest.raises(ConfigError, match="got a folder, expected a file"):
        build_report(ReportPlan((tmp_path / "good.json",))).write(tmp_path)
    assert "got no GIF in it" in refusal(tmp_path / "good.json", pictures=(tmp_path,))


def test_the_command_writes_both_files_and_one_document(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, markdown = tmp_path / "r.html", tmp_path / "r.md"
    arguments = ["bench", "report", str(records), "--output", str(output), "--markdown", str(markdown), "--json"]
    app(args=arguments, standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert document["num_rows"] == 6
    assert document["markdown"] == str(markdown)
    assert {record["format"] for record in document["records"]} == {"rfedge-latency", "rfedge-sweep"}
    assert output.read_text().startswith("<!DOCTYPE html>")
    assert markdown.read_text().startswith("# rfedge: measured")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.md"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_without_a_complaint(report: Report, tmp_path: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    report.write(page)
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--v=0", "--window-size=1280,900"]
    shown = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True)
    assert "CONSOLE" not in shown.stderr
    beginning = "Success with its 95 % interval, beside"
    assert Page(shown.stdout).table(beginning) == Page(report.html).table(beginning)
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    page.write_text(report.html.replace("<main>", '<main><img alt="" src="http://127.0.0.1:9/tracker.png">'))
    shown = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True)
    assert "Content Security Policy" in shown.stderr  # so it would have been seen
