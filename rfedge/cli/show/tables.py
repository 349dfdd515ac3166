"""Tables, lines and documents that commands print; with `--json` stdout belongs to the document, the rest goes to stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rfedge.bundle.artifact import Bundle, Manifest, ParityRecord
from rfedge.bundle.gates import allowed, is_met
from rfedge.cli.options import wants_json
from rfedge.records.record import Record

_WIDTH_OF_A_PIPE: Final = 125


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, text_columns: int = 1) -> None:
    """Print one table; numbers, behind `text_columns`, stand to the right."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < text_columns else "right", no_wrap=index == 0, overflow="fold")
    for row in rows:
        # Text, in which [brackets] are no markup.
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console = Console(stderr=wants_json())
    if not console.is_terminal:  # a file or a pipe has no width, and a number cut short is no number
        console.width = max(console.width, _WIDTH_OF_A_PIPE)
    console.print(Text(title, "italic"), soft_wrap=True)  # not the table's own title, which is as narrow as the table
    console.print(table)


def say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr if wants_json() else sys.stdout)


def warn(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def say_ready(what: str, output: Path) -> None:
    """Say what a dry run found ready."""
    say(f"ready: {what} -> {output}; nothing was written")
    print_json({"ready": what, "output": output, "written": False})


def print_json(document: Any) -> None:
    """Print a record, a dataclass or plain values as one line on stdout, where `--json` asks for it."""
    if not wants_json():
        return
    if isinstance(document, BaseModel):
        text = document.model_dump_json()
    else:
        is_plain = isinstance(document, type) or not dataclasses.is_dataclass(document)
        text = json.dumps(document if is_plain else dataclasses.asdict(document), default=str)
    print(text, flush=True)  # into a pipe, whose reader may wait for it


def parity_table(parity: ParityRecord) -> list[tuple[str, str, str, str]]:
    """Return rows (metric, measured, allowed, verdict)."""
    rows = []
    for name, value in parity.metrics.items():
        if (limit := parity.thresholds.get(name)) is None:
            rows.append((name, f"{value:.3g}", "", ""))
        else:
            rows.append((name, f"{value:.6g}", allowed(name, limit), "ok" if is_met(name, value, limit) else "MISSED"))
    return rows


def print_manifest(bundle: Bundle) -> None:
    """Print what a bundle is as two tables and a line, and with `--json` its manifest."""
    manifest = bundle.manifest
    parity = manifest.parity
    print_table(
        f"parity with PyTorch over {parity.num_steps} steps, {manifest.policy.time_keeping} time-keeping ({parity.inputs})",
        ("metric", "measured", "allowed", ""),
        parity_table(parity),
    )
    print_table("effective precision per block", ("block", "precision"), manifest.precision.blocks.items())
    precisions = Counter(map(str, manifest.precision.blocks.values()))
    say(
        f"{bundle.root}: {manifest.policy.name} in {manifest.precision.requested} "
        f"({', '.join(f'{count} blocks {name}' for name, count in precisions.items())}), "
        f"{bundle.size_bytes / 1e6:.1f} MB, parity {'passed' if parity.passed else 'MISSED'}",
        *_engine_forms(manifest),
    )
    print_json(manifest)


def _engine_forms(manifest: Manifest) -> list[str]:
    """Say of each graph what its engine computes in, and how its emulation was proved."""
    record = manifest.tensorrt
    if record is None:
        return []
    lines = []
    for name, form in record.graphs.items():
        reached = max(form.largest.items(), key=lambda item: item[1], default=None)
        text = f"{len(form.islands)} nodes in fp32" if form.floats == "fp16" else form.reason
        if reached is not None:
            text += f", largest number {reached[1]:.4g} in {reached[0]} over {form.num_frames} frames"
        lines.append(f"TensorRT, {name}: {form.floats} for what is not int8 ({text})")
    if (parity := record.parity) is not None:
        error = parity.metrics.get("action_max_error", 0.0)
        verdict = "passed" if parity.passed else "MISSED, so fp32"
        lines.append(f"TensorRT, emulated over {parity.num_steps} steps: {verdict}, largest action error {error:.3g}")
    return lines


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

    for part in parts:
        if isinstance(part, Table):
            rows, notes = part.numbered()
            print_table(part.caption, part.columns, rows, text_columns=part.text_columns)
            say(*notes)
        elif isinstance(part, str):
            say(part)


def write_report(report: Record, output: Path | None = None) -> None:
    """Write the document to `output`, if there is one, and print it with `--json`."""
    if output is not None:
        report.write(output)
    print_json(report)
