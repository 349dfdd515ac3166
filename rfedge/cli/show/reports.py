"""How commands show the document of a measurement: the tables that `rfedge bench report` makes of it, on the screen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rfedge.records.record import Record


def show_report(report: Record, output: Path | None = None) -> None:
    """Print the record's tables, see `show_record`, and hand it over as `write_report` does."""
    document = report.model_dump(mode="json")
    show_record(document["format"], document)
    write_report(report, output)


def show_record(form: str, document: dict[str, Any]) -> None:
    """Print a document of the format `form` as tables, and what measured it."""
    from rfedge.benchmarks.report.bundles import Names, bundle_rows, bundle_tables
    from rfedge.benchmarks.report.collect import Collection, Found
    from rfedge.benchmarks.report.sections import record_sections
    from rfedge.cli.show.tables import say

    names, collection = Names(), Collection([Found(form.removeprefix("rfedge-"), form, document)], [])
    rows = bundle_rows(collection, names) if form == "rfedge-sweep" else []
    show_parts(bundle_tables(rows, names))
    for section in record_sections(collection, names):
        show_parts(section.parts)
    versions = document.get("versions", {}) | document.get("simulator_versions", {})
    for machine in names.machines:
        say(
            f"{names.mark(machine)}: {machine['cpu']}, {machine['usable_cores']} cores, {' '.join(machine['cpu_flags'])}; "
            f"{', '.join(f'{name} {version}' for name, version in versions.items())}; commit {document.get('commit')}"
        )


def show_parts(parts: Iterable[object]) -> None:
    """Print tables with their footnotes, and sentences; pictures are for the page."""
    from rfedge.benchmarks.report.markdown import Table
    from rfedge.cli.show.tables import print_table, say

    for part in parts:
        if isinstance(part, Table):
            rows, notes = part.numbered()
            print_table(part.caption, part.columns, rows, text_columns=part.text_columns)
            say(*notes)
        elif isinstance(part, str):
            say(part)


def write_report(report: Record, output: Path | None = None) -> None:
    """Write the document to `output`, if there is one, and print it with `--json`."""
    from rfedge.cli.show.tables import print_json

    if output is not None:
        report.write(output)
    print_json(report)
