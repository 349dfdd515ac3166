"""Numbers in the README come from a committed result, and its links lead somewhere."""

import json
import re

from typer.testing import CliRunner

from rfedge.cli.app import app
from tests.tool_modules import ROOT, load_tool

README = (ROOT / "README.md").read_text()


def test_the_measured_tables_are_those_of_the_committed_results() -> None:
    for path, part in load_tool("measured_tables").render():
        assert part in path.read_text(), "run python tools/measured_tables.py"


def test_about_six_times_faster_is_what_the_committed_results_say() -> None:
    assert "about six times faster than the original without a GPU" in " ".join(README.split())
    load = load_tool("measured_tables").load
    calvin_ms, playtable_ms = (load(f"env_{name}-d_cpu")["per_call_ms"]["step"]["p50"] for name in ("calvin", "playtable"))
    assert 5.0 <= calvin_ms / playtable_ms <= 8.0


def test_the_full_size_figures_are_those_of_the_committed_result() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "peers_M-3B_cpu_202611.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    ours, reference = rows["rfedge int8"], rows["PyTorch fp32"]
    speedups = {name: row["speedup"]["value"] for name, row in rows.items() if row["speedup"] is not None}
    limit_ms = report["limit"]["int8_ms"]
    expected = (
        f"takes {ours['call_ms']['p50']:.0f} ms a policy call in int8, {speedups['rfedge int8']:.1f}x faster than eager "
        f"PyTorch, fp32 {speedups['rfedge fp32']:.1f}x, in {ours['peak_bytes'] / 2**30:.1f} GiB against "
        f"{reference['peak_bytes'] / 2**30:.1f}; the machine's own int8 MatMuls would need {limit_ms:.0f} ms"
    )
    assert expected in " ".join(README.split())


def test_the_small_size_figures_are_those_of_the_committed_result() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "demo_playtable-small_cpu_202611.json").read_text())["latency"]
    call_ms = {row["role"] + row["precision"]: row["per_call_ms"]["total"]["p50"] for row in report["variants"]}
    expected = (
        f"takes {call_ms['bundleint8']:.1f} ms in int8, {call_ms['torchfp32'] / call_ms['bundleint8']:.1f}x faster than "
        f"eager PyTorch, fp32 {call_ms['torchfp32'] / call_ms['bundlefp32']:.1f}x"
    )
    assert expected in " ".join(README.split())


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    for link in links:
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_help_lists_every_command() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    for command in ("demos", "train", "export", "verify", "run", "bench"):
        assert command in output
