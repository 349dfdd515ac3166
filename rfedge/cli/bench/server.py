"""`rfedge bench server`: what `rfedge serve` stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.bundle_names import bundle_folder

if TYPE_CHECKING:
    from rfedge.benchmarks.latency.server import ServerReport

__all__ = ["server"]


def server(
    bundle: Annotated[
        Path | None,
        typer.Option(callback=bundle_folder, help="Bundle to serve; without one `tiny` with random weights is exported."),
    ] = None,
    clients: Annotated[int, typer.Option(help="Clients connected at once.")] = 100,
    streaming: Annotated[int, typer.Option(help="How many of them ask as fast as they are answered.")] = 8,
    seconds: Annotated[float, typer.Option(help="For how long.")] = 60.0,
    malformed: Annotated[int, typer.Option(help="Malformed messages.")] = 10_000,
    deadline_ms: Annotated[float, typer.Option(help="Deadline of the client whose server is killed.")] = 200.0,
    threads: Annotated[int, typer.Option(help="Threads of the policy.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of frames and malformed messages.")] = 0,
    instruction: Annotated[
        list[str] | None, typer.Option(help="What the clients ask for, in turn; needed for a bundle with few sentences.")
    ] = None,
    assert_sound: Annotated[
        bool, typer.Option("--assert-sound", help="Fail if states mix, anything leaks, or a lost server holds a robot up.")
    ] = False,
    assert_p99_ms: Annotated[float | None, typer.Option(help="Fail unless the round trips' p99 is at most this.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    from rfedge.benchmarks.latency import server as library
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.reports import write_report

    plan = library.ServerPlan(
        bundle=bundle,
        clients=clients,
        streaming=streaming,
        seconds=seconds,
        malformed=malformed,
        deadline_ms=deadline_ms,
        threads=threads,
        seed=seed,
        instructions=tuple(instruction) if instruction else library.INSTRUCTIONS,
    )
    with stage_progress() as progress:
        report = library.run_server(plan, progress=progress)
    _print(report, as_json=as_json)
    write_report(report, output, as_json=as_json)
    # Last, so that the numbers behind a failed gate are on the screen.
    if assert_sound:
        library.assert_sound(report)
    if assert_p99_ms is not None:
        library.assert_p99_ms(report, assert_p99_ms)


def _print(report: ServerReport, *, as_json: bool) -> None:
    from rich.console import Console

    from rfedge.cli.show.tables import print_table

    streaming, malformed, loss = report.streaming, report.malformed, report.loss
    print_table(
        f"{report.policy} {report.precision}, {streaming.num_streaming} clients stream: milliseconds per frame",
        ("what", "frames", "p50", "p90", "p99", "max"),
        [
            (name, summary.n, *(f"{number:.2f}" for number in (summary.p50, summary.p90, summary.p99, summary.max)))
            for name, summary in (
                ("round trip", streaming.round_trip_ms),
                ("wait for the policy", streaming.queue_ms),
                ("policy", streaming.infer_ms),
            )
        ],
        to_stderr=as_json,
    )
    fewest, most = streaming.requests_per_client
    rss_before, rss_after = (size / 1e6 for size in malformed.rss_bytes)
    back = "never" if loss.back_after_s is None else f"{loss.back_after_s:.1f} s after its start"
    machine = report.machine
    Console(stderr=as_json).print(
        f"{streaming.num_connected} clients connected, {streaming.requests_per_s:.0f} frames a second for "
        f"{streaming.duration_s:.0f} s, {fewest} to {most} a client; "
        f"{streaming.num_mixed} of {streaming.num_answered} answers differ from a solo run, {streaming.num_late} late\n"
        f"{malformed.num_messages} malformed messages in {malformed.duration_s:.0f} s: "
        f"{malformed.num_good_served} of {malformed.num_good} good clients served, "
        f"memory {rss_before:.1f} to {rss_after:.1f} MB, files {malformed.num_files[0]} to {malformed.num_files[1]}, "
        f"{len(malformed.log_lines)} lines in the log\n"
        f"server killed: no action said within {loss.slowest_error_ms:.1f} ms (deadline {loss.deadline_ms:g} ms), "
        f"{loss.num_held} steps held, acting again {back}, {loss.num_wrong} wrong actions after; "
        f"with the server gone for good the run ended in {loss.ended!r}\n"
        f"{machine.cpu}, {machine.usable_cores} cores, {report.threads} threads; commit {report.commit}",
        highlight=False,
        soft_wrap=True,
    )
