"""How `rfedge bench latency --isolate` is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from rfedge.benchmarks.latency.isolated import IsolatedReport


def print_isolated(console: Console, report: IsolatedReport) -> None:
    """Print rows, the limit of the machine and the noise floor."""
    from rfedge.benchmarks.latency.isolated import NOTES
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
        f"{report.size}, {report.num_tokens} tokens, {report.threads} threads",
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
        f"first bundle against itself: {floor.value:.3f}x [{floor.low:.3f}, {floor.high:.3f}]; {report.machine.cpu}, "
        f"{report.machine.usable_cores} cores, {' '.join(report.machine.cpu_flags)}; commit {report.commit}",
        highlight=False,
        soft_wrap=True,
    )
