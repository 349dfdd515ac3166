"""`rfedge bench server`: `rfedge serve` under load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfedge.cli.bundle_names import bundle_folder


def server(
    bundle: Annotated[Path, typer.Argument(callback=bundle_folder, help="Bundle folder or shipped policy to serve.")],
    clients: Annotated[int, typer.Option(help="Clients that ask as fast as they are answered.")] = 8,
    seconds: Annotated[float, typer.Option(help="For how long.")] = 60.0,
    threads: Annotated[int, typer.Option(help="Threads of the policy.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the frames.")] = 0,
    instruction: Annotated[
        list[str] | None, typer.Option(help="What the clients ask for, in turn; needed for a bundle with few sentences.")
    ] = None,
    assert_sound: Annotated[
        bool, typer.Option("--assert-sound", help="Fail if states mix, an answer is late or the server ends badly.")
    ] = False,
    assert_p99_ms: Annotated[float | None, typer.Option(help="Fail unless the round trips' p99 is at most this.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    from rich.console import Console

    from rfedge.benchmarks.latency import server as library
    from rfedge.cli.show.reports import write_report
    from rfedge.cli.show.tables import print_table

    instructions = tuple(instruction) if instruction else library.INSTRUCTIONS
    report = library.run_server(library.ServerPlan(bundle, clients, seconds, threads, seed, instructions))
    times = {"round trip": report.round_trip_ms, "wait for the policy": report.queue_ms, "policy": report.infer_ms}
    print_table(
        f"{report.policy} {report.precision}, {clients} clients: milliseconds per frame",
        ("what", "frames", "p50", "p90", "p99", "max"),
        [(name, one.n, *(f"{value:.2f}" for value in (one.p50, one.p90, one.p99, one.max))) for name, one in times.items()],
        to_stderr=as_json,
    )
    fewest, most = report.requests_per_client
    Console(stderr=as_json).print(
        f"{report.requests_per_s:.0f} frames per second for {report.duration_s:.0f} s, {fewest} to {most} per client; "
        f"{report.num_mixed} of {report.num_answered} answers differ from a solo run, {report.num_late} late",
        highlight=False,
        soft_wrap=True,
    )
    write_report(report, output, as_json=as_json)
    # Last, so that the numbers behind a failed gate are on the screen.
    if assert_sound:
        library.assert_sound(report)
    if assert_p99_ms is not None:
        library.assert_p99_ms(report, assert_p99_ms)
