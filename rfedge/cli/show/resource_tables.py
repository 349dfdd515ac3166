"""Memory, power and temperature of runs, printed for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from rfedge.runtimes.rollout.resources import ResourceRecord


def print_resources(console: Console, used: Mapping[str, ResourceRecord], *, when: str) -> None:
    """Print one row for each stretch of time, by name, and why there is no power or temperature where there is none.

    Args:
        used: in the order of their rows, at least one; all of one machine.
        when: what the policies did meanwhile, the title.
    """
    from rich.table import Table

    table = Table(title=when, title_justify="left")
    power = Table(title=f"power, {when}", title_justify="left")
    for name in ("what", "memory MB", "MemAvailable fell by MB", "hottest"):
        table.add_column(name, justify="left" if name in ("what", "hottest") else "right")
    for name in ("what", "of", "mean W", "peak W", "J/action", "above idle"):
        power.add_column(name, justify="left" if name in ("what", "of") else "right")
    for name, use in used.items():
        fell = "not reported"
        if use.available_start_bytes is not None and use.available_lowest_bytes is not None:
            fell = f"{(use.available_start_bytes - use.available_lowest_bytes) / 1e6:.0f}"
        hottest = max(use.temperatures, key=lambda sensor: sensor.highest_c, default=None)
        heat = "not reported" if hottest is None else f"{hottest.sensor} {hottest.highest_c:.0f} °C"
        table.add_row(name, f"{use.rss_peak_bytes / 1e6:.0f}", fell, heat)
        for meter in use.power:
            joules = (meter.joules_per_action, meter.joules_per_action_above_idle)
            texts = ("" if number is None else f"{number:.4g}" for number in joules)
            power.add_row(name, meter.source, f"{meter.mean_w:.2f}", f"{meter.peak_w:.2f}", *texts)
    console.print(table)
    if power.row_count:
        console.print(power)
    first = next(iter(used.values()))
    reasons = {"power": first.power_reason, "temperature": first.temperatures_reason}
    said = [f"{subject} {reason}" for subject, reason in reasons.items() if reason]
    share = max(use.sampler_share for use in used.values())
    console.print("\n".join([*said, f"the sampler took {share:.2%} of one core"]), highlight=False, soft_wrap=True)
