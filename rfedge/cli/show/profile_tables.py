"""Tables of `rfedge bench latency --profile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from rfedge.benchmarks.latency.profile import CallProfile


def print_profiles(console: Console, profiles: Sequence[CallProfile]) -> None:
    """Print operators, stages and blocks of each profile; say so where no backend can."""
    from rich.table import Table

    if not profiles:
        console.print("no profile: these backends do not time their operators", highlight=False)
    for profile in profiles:
        kinds = Table(title=f"{profile.variant}: {profile.ms:.2f} ms of operators a call, medians of {profile.calls} calls")
        kinds.add_column("operator")
        for name in ("number", "ms", "share"):
            kinds.add_column(name, justify="right")
        for item in profile.operators:
            kinds.add_row(item.kind, str(item.count), f"{item.ms:.3f}", f"{item.ms / profile.ms:.0%}")
        console.print(kinds)
        blocks = Table(title=f"{profile.variant}: blocks, and the machine's limit for their MatMuls")
        blocks.add_column("stage, block")
        for name in ("ms", "limit ms", "of the limit"):
            blocks.add_column(name, justify="right")
        for block in (*profile.stages, *profile.blocks):
            limit = "-" if block.limit_ms is None else f"{block.limit_ms:.3f}"
            share = "-" if block.share is None else f"{block.share:.0%}"
            is_last_stage = block is profile.stages[-1]
            blocks.add_row(block.name, f"{block.ms:.3f}", limit, share, end_section=is_last_stage)
        console.print(blocks)
        console.print(
            f"limit: {profile.int8_ops / 1e9:.0f} int8 GOP/s, {profile.fp32_flops / 1e9:.0f} fp32 GFLOP/s, "
            f"{profile.bandwidth_bytes / 1e9:.0f} GB/s ({profile.limit_of})",
            highlight=False,
            soft_wrap=True,
        )
