"""How commands hand over the document of a measurement."""

from __future__ import annotations

from pathlib import Path

from rfedge.records.record import Record


def write_report(report: Record, output: Path | None = None, *, as_json: bool) -> None:
    """Write the document to `output`, if there is one, and print it as one line on stdout if `as_json`."""
    if output is not None:
        report.write(output)
    if as_json:
        print(report.model_dump_json())
