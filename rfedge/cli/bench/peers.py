"""`rfedge bench peers`: a full-size policy in int8 against PyTorch, onnxruntime alone, Optimum and OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from rfedge.benchmarks.latency.peers import PeersReport

__all__ = ["peers"]


def peers(
    folder: Annotated[Path, typer.Option(help="Folder for checkpoint and bundles; what is missing is made there.")],
    size: Annotated[str, typer.Option(help="Preset; its weights are random.")] = "M-3B",
    data: Annotated[Path | None, typer.Option(help="Demonstrations to calibrate int8 on.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only these rows, and the three that are always measured.")] = None,
    rounds: Annotated[int, typer.Option(help="Processes of every row.")] = 3,
    calls: Annotated[int, typer.Option(help="Timed policy calls a process.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of every row.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of weights, frames, order and bootstrap.")] = 0,
    assert_int8: Annotated[float | None, typer.Option(help="Fail unless int8 is this many times faster.")] = None,
    assert_fp32: Annotated[float, typer.Option(help="With --assert-int8: the same for fp32.")] = 1.5,
    assert_peak_gib: Annotated[float, typer.Option(help="With --assert-int8: most memory of int8.")] = 3.0,
    output: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    from rich.console import Console

    from rfedge.benchmarks.latency import peers as library
    from rfedge.benchmarks.latency.peer_artifacts import prepare_peers
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.reports import write_report

    plan = library.PeersPlan(
        size=size,
        folder=folder,
        rows=tuple(row) if row else library.ROWS,
        rounds=rounds,
        calls=calls,
        threads=threads,
        seed=seed,
    )
    with stage_progress() as progress:
        prepare_peers(size, folder, data=data, seed=seed, progress=progress)
    with stage_progress() as progress:
        report = library.run_peers(plan, progress=lambda _, done, total: progress("processes", done, total))
    _print(Console(stderr=as_json), report)
    write_report(report, output, as_json=as_json)
    if assert_int8 is not None:
        library.assert_peers(report, int8=assert_int8, fp32=assert_fp32, peak_gib=assert_peak_gib)


def _print(console: Console, report: PeersReport) -> None:
    from rfedge.benchmarks.latency.peers import NOTES
    from rfedge.cli.show.tables import print_table

    rows: list[tuple[str, ...]] = []
    for row in report.rows:
        if row.call_ms is None or row.backbone_ms is None or row.head_ms is None or row.speedup is None:
            continue
        ratio = row.speedup
        rows.append(
            (
                row.name,
                f"{row.call_ms.p50:.0f}",
                f"{row.backbone_ms.p50:.0f}",
                f"{row.head_ms.p50:.1f}",
                f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]",
                f"{(row.peak_bytes or 0) / 2**30:.2f}",
                f"{row.load_s or 0:.0f}",
            )
        )
    print_table(
        f"{report.size}, random weights, {report.num_tokens} tokens, {report.threads} threads",
        ("variant", "policy call p50 ms", "backbone", "head", "speed-up [95 %]", "peak GiB", "load s"),
        rows,
        to_stderr=console.stderr,
    )
    for row in report.rows:
        if row.failed is not None:
            console.print(f"{row.name}, not run: {row.failed}", highlight=False, soft_wrap=True, markup=False)
        if row.name in NOTES and row.call_ms is not None:
            console.print(f"{row.name}: {NOTES[row.name]}", highlight=False, soft_wrap=True)
    limit, floor = report.limit, report.noise_floor
    shares = ", ".join(
        f"{name} {ms:.0f} ms" + ("" if share is None else f" ({share:.0%} reached)")
        for name, ms, share in (("int8", limit.int8_ms, limit.int8_share), ("fp32", limit.fp32_ms, limit.fp32_share))
    )
    console.print(
        f"this machine's limit for a call, from its measured MatMuls and copies: {shares}\n"
        f"int8 bundle against itself: {floor.value:.3f}x [{floor.low:.3f}, {floor.high:.3f}]; {report.machine.cpu}, "
        f"{report.machine.usable_cores} cores, {' '.join(report.machine.cpu_flags)}; commit {report.commit}",
        highlight=False,
        soft_wrap=True,
    )
