"""Write docs/results/report.html and report.md from the committed results; a test checks that they agree.

The page is one file without anything to load: open it in a browser.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rfedge.benchmarks.report.build import Report, ReportPlan, build_report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, MARKDOWN = ROOT / "docs" / "results" / "report.html", ROOT / "docs" / "results" / "report.md"
FILM = ROOT / "docs" / "images" / "jump_step_policy.gif"


def make_report() -> Report:
    """Return the report of all committed results and the film of the shipped policy."""
    return build_report(ReportPlan((RESULTS,), (FILM,) if FILM.is_file() else (), "rfedge: what was measured"))


def main() -> int:
    report = make_report()
    report.write(PAGE, MARKDOWN)
    print(f"{PAGE.relative_to(ROOT)}: {len(report.html) / 1e6:.1f} MB, {len(report.rows)} rows; {MARKDOWN.name} beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
