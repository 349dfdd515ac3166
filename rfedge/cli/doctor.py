"""`rfedge doctor`: what this machine is, and which precisions are possible on it."""

from __future__ import annotations

from rfedge.cli.options import AsJson


def doctor(as_json: AsJson = False) -> int:
    from rich.text import Text

    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import print_json, print_table
    from rfedge.runtimes.doctor.examination import examine

    with stage_progress() as progress:
        examination = examine(progress)
    colours = {"ok": "green", "note": "yellow", "absent": "dim", "problem": "red"}
    found = [(line.subject, Text(line.verdict, colours[line.verdict]), line.text) for line in examination.lines]
    print_table("this machine", ("subject", "", "found"), found, text_columns=3)
    possible = {True: Text("yes", "green"), False: Text("no", "dim")}
    rows = [
        (one.name, possible[one.possible], one.backend or "-", one.speed or "-", one.reason)
        for one in examination.precisions
    ]
    print_table("precisions", ("precision", "possible here", "runs on", "against fp32", "why not"), rows, text_columns=5)
    print_json(examination.document())
    return 0 if examination.healthy else 1
