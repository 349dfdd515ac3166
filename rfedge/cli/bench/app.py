"""`rfedge bench`: measurements, each a table for people and one JSON document for machines."""

from __future__ import annotations

import typer

from rfedge.cli.bench.chains import chains
from rfedge.cli.bench.env import env
from rfedge.cli.bench.episodes import episodes
from rfedge.cli.bench.experts import experts
from rfedge.cli.bench.latency import latency
from rfedge.cli.bench.looks import looks
from rfedge.cli.bench.loop import loop
from rfedge.cli.bench.peers import peers
from rfedge.cli.bench.report import report
from rfedge.cli.bench.server import server
from rfedge.cli.bench.success import success
from rfedge.cli.bench.sweep import sweep

__all__ = ["bench_app"]

bench_app = typer.Typer(name="bench", help="Measure latency and success.", no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """Measure latency and success."""  # without a callback typer would drop the name of a single command


for _command in (latency, chains, env, episodes, experts, looks, loop, peers, server, success, sweep, report):
    bench_app.command()(_command)
