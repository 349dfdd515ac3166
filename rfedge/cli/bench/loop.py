"""`rfedge bench loop`: what the control loop costs, whether it keeps its rate and whether it grows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from rfedge.cli.bundle_names import bundle_folder

if TYPE_CHECKING:
    from rfedge.benchmarks.latency.loop_policy import Work
    from rfedge.benchmarks.latency.loop_report import LoopReport

__all__ = ["loop"]


def loop(
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the bundle with random weights; made there if missing, and kept.")
    ] = None,
    bundle: Annotated[
        list[Path] | None, typer.Option(callback=bundle_folder, help="Further bundles for the open-loop table.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="How long the rate is held.")] = 10.0,
    rate_hz: Annotated[float, typer.Option(help="Control steps per second.")] = 30.0,
    backbone_ms: Annotated[float, typer.Option(help="Duration of the backbone while the rate is held.")] = 20.0,
    work: Annotated[
        str, typer.Option(help="How that time passes: busy (one core computes) or sleep (as with a GPU).")
    ] = "busy",
    periods: Annotated[float, typer.Option(help="Control periods that the overlapped backbone takes.")] = 3.0,
    overlapped_minutes: Annotated[float, typer.Option(help="How long the overlapped part runs.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Control steps of the memory part.")] = 100_000,
    samples: Annotated[
        int, typer.Option(help="Control steps of each measurement of overhead; the table takes a tenth.")
    ] = 3000,
    realtime_priority: Annotated[
        int | None, typer.Option(help="Schedule the loop before ordinary programs while rates are held, 1 to 97.")
    ] = None,
    assert_overhead_ms: Annotated[float | None, typer.Option(help="Fail unless the loop's own p99 is at most this.")] = None,
    assert_misses: Annotated[
        int | None, typer.Option(help="Fail on more late or missed steps than this, at the held rate or overlapped.")
    ] = None,
    assert_memory: Annotated[
        float | None, typer.Option(help="Fail if resident memory grows by more than this share, such as 0.01.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    from rfedge.benchmarks.latency import loop as library
    from rfedge.benchmarks.latency import loop_report as gates
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.reports import write_report

    plan = library.LoopPlan(
        folder=folder,
        bundles=tuple(bundle or ()),
        minutes=minutes,
        rate_hz=rate_hz,
        backbone_ms=backbone_ms,
        work=cast("Work", work),
        periods=periods,
        overlapped_minutes=overlapped_minutes,
        steps=steps,
        samples=samples,
        realtime_priority=realtime_priority,
    )
    with stage_progress() as progress:
        report = library.run_loop(plan, progress=progress)
    _print(report, as_json=as_json)
    write_report(report, output, as_json=as_json)
    # Last, so that the numbers behind a failed gate are on the screen.
    if assert_overhead_ms is not None:
        gates.assert_overhead_ms(report, assert_overhead_ms)
    if assert_misses is not None:
        gates.assert_misses(report, assert_misses)
    if assert_memory is not None:
        gates.assert_memory(report, assert_memory)


def _print(report: LoopReport, *, as_json: bool) -> None:
    from rich.console import Console

    from rfedge.cli.show.tables import print_table
    from rfedge.runtimes.control.scheduling import describe_priority

    columns = ("p50", "p90", "p99", "max")
    rate, overlapped, memory = report.rate, report.overlapped, report.memory
    print_table(
        f"{report.policy}: milliseconds; limits {report.limits}",
        ("what", "samples", *columns),
        [
            (name, summary.n, *(f"{getattr(summary, column):.3f}" for column in columns))
            for name, summary in (
                ("loop alone", report.overhead.loop_ms),
                ("loop alone, recorded", report.overhead.recorded_ms),
                ("wake-up, closed loop", rate.wake_lag_ms),
                ("wake-up, overlapped", overlapped.wake_lag_ms),
                ("age, closed loop", rate.age_ms),
                ("age, overlapped", overlapped.age_ms),
            )
        ],
        to_stderr=as_json,
    )
    print_table(
        f"rates held, {describe_priority(report.realtime_priority)}; ms of the backbone ({report.work}), "
        "age of the oldest frame in steps",
        ("mode", "ms", "minutes", "Hz", "late", "missed", "starved", "calls", "oldest"),
        [
            (
                name,
                f"{part.backbone_ms:g}",
                f"{part.duration_s / 60:.1f}",
                f"{part.held_hz:.2f} of {part.wanted_hz:g}",
                part.num_late,
                part.num_missed,
                part.num_starved,
                part.num_inferences,
                part.max_age_steps,
            )
            for name, part in (("closed loop", rate), ("overlapped", overlapped))
        ],
        to_stderr=as_json,
    )
    print_table(
        "open loop: milliseconds per control step",
        ("policy", "chunk", "steps played", "total", "backbone"),
        [
            (
                f"{row.policy} {row.precision}",
                row.chunk_size,
                row.execute_steps,
                f"{row.total_ms:.3f}",
                f"{row.backbone_ms:.3f}",
            )
            for row in report.open_loop
        ],
        to_stderr=as_json,
    )
    machine = report.machine
    Console(stderr=as_json).print(
        f"memory over {memory.num_steps} steps: {memory.first_bytes / 2**20:.1f} MiB at first, "
        f"{memory.max_bytes / 2**20:.1f} MiB at most ({memory.growth:+.2%})\n"
        f"{machine.cpu}, {machine.usable_cores} cores; commit {report.commit}",
        highlight=False,
        soft_wrap=True,
    )
