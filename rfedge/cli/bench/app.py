"""`rfedge bench`: measurements, each a table for people and one JSON document for machines."""

from __future__ import annotations

import typer

from rfedge.cli.groups import lazy_group

bench_app = typer.Typer(name="bench", cls=lazy_group("rfedge bench"), no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """Measure latency and success."""
