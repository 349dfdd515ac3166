"""The page's part on what stands around a policy: the control loop, the server, the simulator, and importing weights."""

from __future__ import annotations

from rfedge.benchmarks.latency.environment_speed import EnvironmentSpeedReport
from rfedge.benchmarks.latency.loop_report import LoopReport
from rfedge.benchmarks.latency.server import ServerReport
from rfedge.benchmarks.report.collect import Collection
from rfedge.benchmarks.report.document import Cell, Section, Table, titled
from rfedge.benchmarks.report.first_table import Machines
from rfedge.benchmarks.report.words import bytes_mb, count, duration, milliseconds, percentiles
from rfedge.benchmarks.studies.import_memory import ImportMemoryReport
from rfedge.envs.looks import world_name

__all__ = ["system_sections"]


def system_sections(collection: Collection, machines: Machines) -> list[Section]:
    """Return the sections for the records that are there."""
    loops, servers = titled("Control loop", collection.of(LoopReport)), titled("Server", collection.of(ServerReport))
    sections = [Section(title, _loop(one, machines)) for title, one in loops]
    sections += [Section(title, [_server(one, machines)]) for title, one in servers]
    environments = collection.of(EnvironmentSpeedReport)
    if environments:
        rows: list[list[str | Cell]] = [
            [
                f"{world_name(report.environment, report.looks, report.renderer)} {report.scene}",
                report.renderer,
                machines.mark(report.machine),
                call,
                *percentiles(summary),
            ]
            for _, report in environments
            for call, summary in report.per_call_ms.items()
        ]
        columns = ["world", "renderer", "machine", "call", "p50 ms", "p90 ms", "p99 ms"]
        told = "What a control step of the simulator costs: physics, both cameras, both together, and a reset."
        sections.append(Section("Simulator", [Table(told, columns, rows, text_columns=4)]))
    imports = collection.of(ImportMemoryReport)
    if imports:
        rows = []
        for _, report in imports:
            for what, cost in (("import", report.import_), ("load", report.load)):
                place = machines.mark(report.machine)
                sizes = [bytes_mb(report.checkpoint_bytes, ""), bytes_mb(cost.peak_rss_bytes, "")]
                rows.append(
                    [
                        f"{report.preset}, {report.dtype}",
                        what,
                        place,
                        *sizes,
                        f"{cost.peak_per_checkpoint:.2f}",
                        f"{cost.seconds:.1f}",
                    ]
                )
        columns = ["weights", "what", "machine", "checkpoint MB", "peak MB", "peak over checkpoint", "seconds"]
        told = "Original weights of full size, as stand-ins: what importing and loading them takes."
        sections.append(Section("Importing weights", [Table(told, columns, rows, text_columns=3)]))
    return sections


def _loop(report: LoopReport, machines: Machines) -> list[Table]:
    overhead, memory = report.overhead, report.memory
    priority = "ordinary" if report.realtime_priority is None else f"realtime {report.realtime_priority}"
    rates: list[list[str | Cell]] = []
    for name, part in (("in turn", report.rate), ("overlapped", report.overlapped)):
        counts = (part.num_steps, part.num_late, part.num_skipped, part.num_missed)
        lags = (part.wake_lag_ms.p99, part.wake_lag_ms.max, part.age_ms.p50)
        rates.append(
            [
                f"{name}, {milliseconds(part.backbone_ms)} ms backbone",
                *(f"{part.wanted_hz:g}", f"{part.held_hz:.3f}", duration(part.duration_s)),
                *map(str, counts),
                *map(milliseconds, lags),
            ]
        )
    steps = ("steps", "late", "skipped", "missed")
    lag_names = ("wake lag p99 ms", "wake lag max ms", "frame age p50 ms")
    told = f"{report.policy} on {machines.mark(report.machine)}, {report.work}, {priority} priority; limits {report.limits}."
    own: list[list[str | Cell]] = [
        ["loop", *percentiles(overhead.loop_ms)],
        ["loop and recorder", *percentiles(overhead.recorded_ms)],
    ]
    stacked: list[list[str | Cell]] = [
        [f"{row.policy} in {row.precision}", str(row.chunk_size), str(row.execute_steps), milliseconds(row.total_ms)]
        for row in report.open_loop
    ]
    growth = f"{memory.growth:+.2%}"
    sizes = [bytes_mb(value, "") for value in (memory.first_bytes, memory.last_bytes, memory.max_bytes)]
    return [
        Table(f"Holding a rate: {told}", ["part", "Hz wanted", "Hz held", "time", *steps, *lag_names], rates),
        Table("A control step without backbone and head, ms.", ["part", "p50", "p90", "p99"], own),
        Table(
            "Resident memory over a long run, MB.",
            ["steps", "time", "after warm-up", "at the end", "most", "growth"],
            [[str(memory.num_steps), duration(memory.duration_s), *sizes, growth]],
            text_columns=0,
        ),
        Table(
            "Milliseconds per control step when several steps of a prediction are played.",
            ["policy", "predicted", "played", "ms per step"],
            stacked,
        ),
    ]


def _server(report: ServerReport, machines: Machines) -> Table:
    streaming, malformed, loss = report.streaming, report.malformed, report.loss
    back = "not at all" if loss.back_after_s is None else f"{loss.back_after_s:.2f} s"
    facts = [
        ("clients connected, streaming", f"{streaming.num_connected}, {streaming.num_streaming}"),
        ("answers, of other clients' frames", f"{streaming.num_answered}, {streaming.num_mixed}"),
        ("answers per second", f"{streaming.requests_per_s:.1f}"),
        (
            "round trip p50 / p99 ms",
            " / ".join(milliseconds(v) for v in (streaming.round_trip_ms.p50, streaming.round_trip_ms.p99)),
        ),
        ("malformed messages", str(malformed.num_messages)),
        ("good clients served among them", f"{malformed.num_good_served} of {malformed.num_good}"),
        ("back after it was killed", back),
        ("wrong actions after that", str(loss.num_wrong)),
        ("exit status", str(report.exit_status)),
    ]
    told = f"{report.policy} in {report.precision} on {machines.mark(report.machine)}, {count(report.threads, 'thread')}."
    return Table(told, ["what", "measured"], facts)
