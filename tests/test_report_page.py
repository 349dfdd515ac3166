"""docs/results/report.md and report.html are what the committed results make today."""

import os
import re
import subprocess
import sys

from tests.tool_modules import ROOT, load_tool


def test_the_committed_report_is_the_one_of_the_committed_results() -> None:
    tool = load_tool("measured_tables")
    report = tool.make_report()
    assert tool.REPORT.with_suffix(".md").read_text() == report.markdown
    # Plots are left out: another release of matplotlib may write them otherwise.
    plots = re.compile(r"data:image/svg[^\"]*")
    assert plots.sub("", tool.REPORT.read_text()) == plots.sub("", report.html)
    assert "/tmp/" not in report.html


def test_the_page_needs_no_pytorch() -> None:
    code = "import sys, measured_tables; measured_tables.make_report(); assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tools",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
