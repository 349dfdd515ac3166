"""`rfedge doctor`: what this machine is, and which precisions are possible on it."""

from __future__ import annotations

from rfedge.cli.options import AsJson


def doctor(as_json: AsJson = False) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import print_json
    from rfedge.runtimes.doctor.examination import examine

    with stage_progress() as progress:
        examination = examine(progress)
    console = Console(stderr=as_json)
    colours = {"ok": "green", "note": "yellow", "absent": "dim", "problem": "red"}
    table = Table(title="this machine", title_justify="left")
    for column in ("subject", "", "found"):
        table.add_column(column, overflow="fold")
    for line in examination.lines:
        colour = colours[line.verdict]
        table.add_row(line.subject, f"[{colour}]{line.verdict}[/{colour}]", escape(line.text))
    console.print(table)
    precisions = Table(title="precisions", title_justify="left")
    for column in ("precision", "possible here", "runs on", "against fp32", "why not"):
        precisions.add_column(column, overflow="fold")
    for verdict in examination.precisions:
        possible = "[green]yes[/green]" if verdict.possible else "[dim]no[/dim]"
        precisions.add_row(verdict.name, possible, verdict.backend or "-", verdict.speed or "-", escape(verdict.reason))
    console.print(precisions)
    print_json(examination.document())
    return 0 if examination.healthy else 1
