"""The report: every number is a record's, what is missing is said, and the page loads nothing."""

import base64
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

from rfedge.benchmarks.report.build import Report, build_report, quoted_baselines
from rfedge.benchmarks.report.bundles import most_rows
from rfedge.benchmarks.success.chains import ChainConditions, ChainReport
from rfedge.benchmarks.success.sweep import SweepReport
from rfedge.cli.bench.app import bench_app
from rfedge.errors import ArtifactError, ConfigError
from rfedge.records.statistics import Ratio
from tests.benchmarks.report_page import Page
from tests.benchmarks.report_records import (
    BOARD,
    CALL_MS,
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
from tests.errors import raises

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
    return build_report((records,), (gif.parent,), "A <title> & more")


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.html)


def sweep(records: Path) -> SweepReport:
    return SweepReport.model_validate_json((records / "sweep.json").read_bytes())


def test_the_first_table_holds_the_numbers_of_the_records(page: Page, records: Path) -> None:
    document = sweep(records)
    header, *rows = page.table("Success with its 95 % interval")
    assert header == [
        "bundle",
        "simulator",
        "average length of 5",
        "single tasks",
        "call p50 / p99 ms",
        "MB",
        "of the reference",
        "loop",
        "execute_steps",
        "ms per control step",
        "power W",
        "machine",
    ]
    on_laptop = [row for row in rows if row[-1].startswith("M1")]
    for row, success, timed in zip(on_laptop, document.success.rows, document.rows, strict=True):
        length, call = success.chains.average_length, timed.per_call_ms
        assert row[:2] == [f"{success.policy} [1]", "PlayTable D"]
        assert row[2].startswith(f"{length.value:.2f} [{length.low:.2f}, {length.high:.2f}], n = 200")
        assert row[3] == "90 % [88, 92], n = 680"
        numbers = [float(number) for number in row[4].split(" [")[0].split(" / ")]
        assert numbers == [pytest.approx(value, rel=0.01) for value in (call.p50, call.p99)]
        assert row[6].startswith("-" if success.paired is None else "96 % [91, 100]")
        assert row[7:9] == [success.kind, str(success.execute_steps)]
        assert float(row[9]) == pytest.approx(call.p50 / success.execute_steps, rel=0.01)
    on_board = [row for row in rows if row[-1].startswith("M2")]
    assert [row[8] for row in on_board] == ["1", "4"]
    assert {row[10].split(" [")[0] for row in on_board} == {"7.2"}


def test_the_page_leads_with_the_bundle_to_use_and_why(report: Report, records: Path) -> None:
    rows = sweep(records).success.rows
    calls = {row.row: row.per_call_ms.p50 for row in sweep(records).rows}
    lengths = [row.chains.average_length.value for row in rows if row.chains is not None]
    fastest = rows[-1]
    faster = calls[rows[0].name] / (calls[fastest.name] / 4)
    assert report.sentence == (
        f"Put small <b> on the robot. It keeps 96 % [91, 100] of the success of whole (average length "
        f"{lengths[-1]:.2f} of 5 against {lengths[0]:.2f} over the same 200 chains, PlayTable D), is {faster:.2f} times "
        f"faster per control step ({calls[fastest.name] / 4:.2f} ms instead of {calls[rows[0].name]:.1f} ms, median on M1) "
        "and has 21.3 MB instead of 62.0 MB."
    )
    assert "<strong>Put small &lt;b&gt; on the robot.</strong>" in report.html
    assert "200 chains cannot rule out a loss of 9 %." in report.markdown


def test_a_bundle_that_loses_success_is_not_advised(tmp_path: Path) -> None:
    document = sweep_report({"whole": "fp32", "small": "int8"}, (1,))
    reference, lossy = document.success.rows
    worse = lossy.paired.model_copy(update={"average_length_share": Ratio(value=0.8, low=0.7, high=0.9)})
    rows = (reference, lossy.model_copy(update={"paired": worse}))
    success = document.success.model_copy(update={"rows": rows})
    document.model_copy(update={"success": success}).write(tmp_path / "sweep.json")
    assert build_report((tmp_path,)).sentence.startswith("Put whole on the robot: no faster bundle")


@pytest.mark.parametrize(("slower", "advised"), [(1.04, "surer"), (1.06, "small")])
def test_of_bundles_of_about_one_speed_the_surer_is_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slower: float, advised: str
) -> None:
    monkeypatch.setitem(CALL_MS, "int4-weight", slower * CALL_MS["int8"])
    document = sweep_report({"whole": "fp32", "small": "int8", "surer": "int4-weight"}, (1,))
    reference, small, surer = document.success.rows
    better = surer.paired.model_copy(update={"average_length_share": Ratio(value=1.0, low=0.98, high=1.02)})
    success = document.success.model_copy(update={"rows": (reference, small, surer.model_copy(update={"paired": better}))})
    document.model_copy(update={"success": success}).write(tmp_path / "sweep.json")
    assert build_report((tmp_path,)).sentence.startswith(f"Put {advised} on the robot.")


def test_a_bundle_has_one_name_whatever_its_records_call_it(tmp_path: Path) -> None:
    """A checkpoint's bundles are called after it, and a latency record's "int8" is the success record's "table-int8"."""
    success = success_report({"table-fp32": "fp32", "table-int8": "int8"}, (1,))
    same = {"checkpoint_sha256": "3" * 64}
    policies = tuple(policy.model_copy(update={"provenance": same}) for policy in success.policies)
    success.model_copy(update={"policies": policies}).write(tmp_path / "success.json")
    latency_report(variant("int8", "int8"), variant("fp32", "fp32")).write(tmp_path / "latency.json")
    latency_report(variant("int4-weight", "int4-weight")).write(tmp_path / "other.json")
    built = build_report((tmp_path,))
    assert [row.name for row in built.rows] == ["table fp32", "table int8", "test-policy int4-weight"]
    names = {
        row[0] for caption, rows in Page(built.html).tables.items() if "milliseconds per" in caption for row in rows[1:]
    }
    assert names == {"table fp32", "table int8", "test-policy int4-weight"}


def test_rates_tasks_and_differences_are_those_of_the_success(page: Page, records: Path) -> None:
    document = sweep(records)
    first = document.success.rows[0].chains
    (caption,) = [caption for caption in page.tables if "Share of 200 chains with at least so many" in caption]
    _, row, *_ = page.tables[caption]
    rates = [(rate.value, 100 * rate.low, 100 * rate.high) for rate in first.success_rates.values()]
    assert row[2:7] == [f"{value:.0%} [{low:.0f}, {high:.0f}]".replace("%", " %") for value, low, high in rates]
    header, *tasks = page.table("Tasks of the chains")
    assert header[1:] == [f"{row.name}, PlayTable D, n = 200" for row in document.success.rows]
    assert {row[0]: row[1] for row in tasks} == {
        task: f"{score.success.successes}/{score.success.n}" for task, score in first.tasks.items()
    }
    (caption,) = [caption for caption in page.tables if "differences from the reference" in caption]
    assert {tuple(cell.split(" [1")[0] for cell in row[2:]) for row in page.tables[caption][1:]} == {
        ("-0.12 [-0.25, +0.03]", "96 % [91, 100]", "-", "-")
    }
    (caption,) = [caption for caption in page.tables if "asked for and not possible" in caption]
    assert page.tables[caption][1] == ["int8", "16", "the policy predicts 8 steps, not 16"]


def test_every_number_in_a_cell_with_a_point_is_one_of_the_records(page: Page, records: Path) -> None:
    """No figure on the page comes from anywhere else: each is a number of a record, or one divided by its steps."""
    documents = [json.loads((records / name).read_text()) for name in ("sweep.json", "deep/board.json")]
    documents.append(quoted_baselines())
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
    assert checked > 120


def test_what_is_missing_is_said(report: Report, page: Page) -> None:
    assert "rfedge bench latency --isolate" in "".join(report.missing)
    assert all(escape(words, quote=False) in report.html for words in report.missing)
    assert {(name.split("/")[-1], reason) for name, reason in report.collection.left_out} == {
        ("broken.json", "no JSON document"),
        ("notes.json", "no record in it: no format that begins with rfedge-"),
    }
    assert all(escape(reason, quote=False) in report.html for _, reason in report.collection.left_out)
    assert "not asked for: rfedge bench latency --resource-seconds" in report.html  # the reason of an empty place
    assert not any("pictures" in words for words in report.missing)


def test_the_page_is_well_formed_loads_nothing_and_escapes_what_records_say(report: Report, page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "b"} & page.tags
    assert all(address.startswith("data:") for address in page.loaded)
    assert [address.split(";")[0] for address in page.loaded].count("data:image/gif") == 1
    assert len(page.ids) == len(set(page.ids))
    inside = {f"#{name}" for name in page.ids}
    assert {link for link in page.links if not link.startswith("https://arxiv.org/abs/")} <= inside
    assert "@import" not in report.html
    assert "url(" not in report.html
    assert "<title>A &lt;title&gt; &amp; more</title>" in report.html
    assert "Test CPU <&>" not in report.html
    assert "small &lt;b&gt;" in report.html
    assert len(report.html) < 1_000_000


def test_plots_are_svg_files_with_a_name_and_are_not_cut(report: Report) -> None:
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', report.html)
    assert [alt.split(" in PlayTable")[0].split(" with ")[0].split(": ")[-1] for _, alt in found] == [
        *["Average length of 5"] * 3,
        *["Share of single tasks"] * 3,
        *["median of 200 policy calls, the line reaches to p99."] * 2,
    ]
    for content, _ in found:
        drawing = ElementTree.fromstring(base64.b64decode(content))
        assert not list(drawing.iter("{http://www.w3.org/2000/svg}text")), "outlines: no font of the reader's is needed"


def test_every_record_is_listed_with_where_it_comes_from(page: Page, records: Path) -> None:
    _, *rows = page.table("Where every number on this page comes from")
    assert [(row[0].split("/")[-1], *row[1:5]) for row in rows] == [
        ("board.json", "rfedge-latency", "2026-11-21T13:00:00+00:00", "0123456789ab-dirty", "M2"),
        ("sweep.json", "rfedge-sweep", "2026-11-21T12:00:00+00:00", "0123456789ab-dirty", "M1"),
    ]
    assert {row[-1] for row in rows} == {"python 3.11.7, rfedge 0.1.0"}
    assert [row[0] for row in page.table("Machines")[1:]] == ["M1", "M2"]
    assert str(records) not in "".join(cell for row in rows for cell in row)  # a name, never a path of this machine


def test_markdown_has_what_the_page_has(report: Report, page: Page) -> None:
    titles = re.findall(r"^## (.*)$", report.markdown, flags=re.MULTILINE)
    assert titles == [
        "Summary",
        "Rollouts",
        "Success",
        "Latency",
        "Task by task",
        "Quoted baselines",
        "Records and machines",
        "What is missing",
    ]
    lines = [line for line in report.markdown.splitlines() if line.startswith("|")]
    assert len(lines) == sum(len(rows) + 1 for rows in page.tables.values())  # a rule below each head
    blocks = re.split(r"\n\n", report.markdown)
    for block in (block for block in blocks if block.startswith("|")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_speed_without_success_says_so_and_is_joined_where_a_success_comes(tmp_path: Path) -> None:
    alone = tmp_path / "latency.json"
    latency_report(variant("int8", "int8"), execute_steps=4).write(alone)
    page = build_report((alone,))
    assert page.sentence.startswith("No record compares the success and speed of two bundles yet")
    _, row = Page(page.html).table("Timed without a record of success, so nothing is known of its worth")
    assert (row[0], row[3]) == ("test-policy int8", "4")
    assert "test-policy int8: no success" in page.missing
    assert "success of a policy: rfedge bench success" in page.missing
    together = tmp_path / "success.json"
    success_report({"small": "int8"}, (1,)).write(together)
    page = build_report((alone, together))
    assert "timed in latency.json" in page.html
    assert [(row.label, row.execute_steps) for row in page.rows] == [("small", 1)]
    page = build_report((together,))
    assert "small: no latency" in page.missing


def test_bundles_of_one_size_are_told_apart_by_their_manifests(tmp_path: Path) -> None:
    sweep_report({"first": "int8", "second": "int8"}, (1,)).write(tmp_path / "sweep.json")
    longer = success_report({"second": "int8"}, (1,))
    moved = tuple(policy.model_copy(update={"path": "elsewhere"}) for policy in longer.policies)
    longer.model_copy(update={"policies": moved, "wall_seconds": 9.0}).write(tmp_path / "longer.json")
    page = build_report((tmp_path / "sweep.json", tmp_path / "longer.json"))
    (row,) = (row for row in page.rows if row.record == "longer.json")
    assert (row.speed.record, row.speed.label) == ("sweep.json", "second")


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
    built = build_report((tmp_path,))
    assert {name.split("/")[1]: reason.split("/")[0] for name, reason in built.collection.left_out} == {
        "sweep.json": f"the same record as {tmp_path.name}",
        "success.json": f"a part of {tmp_path.name}",
        "latency.json": f"a part of {tmp_path.name}",
        "of-the-sweep.json": f"a part of {tmp_path.name}",
    }
    assert len(built.rows) == 2
    (caption,) = [caption for caption in Page(built.html).tables if "another.json" in caption]
    assert caption.endswith("another.json: bundle in PlayTable D, 200 chains.")


def test_two_bundles_of_one_label_stay_apart(tmp_path: Path) -> None:
    first = success_report({"policy": "fp32"}, (1,))
    other_bundle = tuple(policy.model_copy(update={"manifest_sha256": "2" * 64}) for policy in first.policies)
    first.model_copy(update={"policies": other_bundle}).write(tmp_path / "first.json")
    success_report({"policy": "fp32"}, (1, 4)).write(tmp_path / "second.json")
    built = build_report((tmp_path / "first.json", tmp_path / "second.json"))
    assert built.rows[0].name == "policy (62.0 MB, 222222)"
    assert len({row.name for row in built.rows}) == 2
    assert all(re.search(rf"\[\d\] {name}.json", built.html) is not None for name in ("first", "second"))


def test_what_several_records_measured_is_plotted_once(tmp_path: Path) -> None:
    success_report({"policy": "fp32"}, (1,)).write(tmp_path / "few.json")
    success_report({"policy": "fp32"}, (1, 4)).write(tmp_path / "more.json")
    built = build_report((tmp_path / "few.json", tmp_path / "more.json"))
    assert len(built.rows) == 3, "all are in the table"
    assert [row.record for row in most_rows(built.rows)] == ["more.json"] * 2


def test_a_mixed_search_becomes_bars(tmp_path: Path) -> None:
    (tmp_path / "mixed.json").write_text(json.dumps(MIXED))
    latency_report(variant("int8", "int8")).write(tmp_path / "latency.json")
    html = build_report((tmp_path,)).html
    assert html.count("mean action error of int8 in this block alone over 16 steps") == 2  # name and caption
    (caption,) = [caption for caption in Page(html).tables if "budget" in caption]
    assert "budget action_max_error at most 0.02; the plan has 0.0187, int8 0.1, int8 in every block 0.2;" in caption
    assert Page(html).tables[caption][1] == ["mixed/fp32", "0.625"]


def test_every_committed_record_is_on_the_page() -> None:
    built = build_report((RESULTS,))
    assert [one for one in built.collection.left_out if not one[1].startswith("a part of")] == []
    on_page = built.markdown.replace("\\_", "_")
    assert all(f"{path.name}" in on_page for path in RESULTS.glob("*.json"))


def test_a_record_of_another_version_is_left_out_with_what_it_lacks(tmp_path: Path) -> None:
    latency_report(variant("int8", "int8")).write(tmp_path / "good.json")
    for form in ("success", "sweep", "latency", "peers", "loop", "expert-success"):
        (tmp_path / f"{form}.json").write_text(json.dumps({"format": f"rfedge-{form}", "schema_version": 9}))
    built = build_report((tmp_path,))
    reasons = {name.split("/")[1]: reason for name, reason in built.collection.left_out}
    assert sorted(reasons) == [
        "expert-success.json",
        "latency.json",
        "loop.json",
        "peers.json",
        "success.json",
        "sweep.json",
    ]
    assert reasons["peers.json"] == "format 'rfedge-peers' of another version: KeyError: 'rows'"
    assert [row.name for row in built.rows] == ["test-policy int8"]


def test_building_a_report_from_records_imports_few_modules(records: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rfedge.benchmarks.report.build import build_report\n"
        f"build_report((Path({str(records)!r}),))\n"
        "print(sum(name.partition('.')[0] == 'rfedge' for name in sys.modules), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, torch = done.stdout.split()
    assert int(number) <= 40
    assert torch == "False"


def test_users_errors_name_the_file(tmp_path: Path) -> None:
    def refusal(*sources: Path, pictures: tuple[Path, ...] = ()) -> str:
        with pytest.raises(ArtifactError) as error:
            build_report(sources, pictures)
        return str(error.value)

    assert "got no such file or folder" in refusal(tmp_path / "none")
    assert "got no record, expected JSON files of rfedge bench" in refusal(tmp_path)
    named = tmp_path / "named.json"
    named.write_text('{"format": "other"}')
    assert "no format that begins with rfedge-" in refusal(named)
    named.write_text("no JSON")
    assert "got no JSON document" in refusal(named)
    latency_report(variant("int8", "int8")).write(tmp_path / "good.json")
    assert "got another kind of file" in refusal(tmp_path / "good.json", pictures=(named,))
    assert "got No such file" in refusal(tmp_path / "good.json", pictures=(tmp_path / "none.gif",))
    with raises(ConfigError, got="a folder", expected="a file"):
        build_report((tmp_path / "good.json",)).write(tmp_path)
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
    beginning = "Success with its 95 % interval"
    assert Page(shown.stdout).table(beginning) == Page(report.html).table(beginning)
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    page.write_text(report.html.replace("<main>", '<main><img alt="" src="http://127.0.0.1:9/tracker.png">'))
    shown = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True)
    assert "Content Security Policy" in shown.stderr  # so it would have been seen
